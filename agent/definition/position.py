# SPDX-License-Identifier: Apache-2.0
"""Where in a TOML text a key stands: tomli keeps no positions, so this scans the text once more; pure.

Only called when there is something to report. It understands what TOML 1.0 allows around keys (headers, dotted and
quoted keys, inline tables, arrays, every kind of string) and stays calm on anything else: text that is no TOML gives
fewer positions, never an error.
"""

from __future__ import annotations

import re
from typing import NamedTuple

KeyPath = tuple[str | int, ...]
_DEPTH_MAX = 64


class Position(NamedTuple):
    """Counted from 1, in characters; 0 = not known."""

    line: int = 0
    column: int = 0


_BARE = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"[ \t]*")
_SPACE = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_REST_OF_LINE = re.compile(r"[^\n]*\n?")
# Longest first; an unfinished string ends with its line, or with the text.
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""{1,3}(?!")|"""[\s\S]*'
    r"|'''[\s\S]*?'''{1,3}(?!')|'''[\s\S]*"
    r'|"(?:\\.|[^"\\\n])*"?'
    r"|'[^'\n]*'?",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^\s,\]}#]+(?: [^\s,\]}#]+)?")
_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)", re.DOTALL)
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}


def locate(text: str, path: KeyPath) -> Position:
    """The position of a key or of an item; of the nearest table around it where it does not stand in the text."""
    return Positions(text).find(path)


class Positions:
    """All keys of one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.offsets: dict[KeyPath, int] = {}
        self._counts: dict[KeyPath, int] = {}
        self._at = 0
        self._scan()

    def find(self, path: KeyPath) -> Position:
        for length in range(len(path), 0, -1):
            offset = self.offsets.get(path[:length])
            if offset is not None:
                return self._position(offset)
        return Position()

    def _position(self, offset: int) -> Position:
        start = self.text.rfind("\n", 0, offset) + 1
        return Position(self.text.count("\n", 0, offset) + 1, offset - start + 1)

    # A cursor over the text; every method leaves it behind what it has read.

    def _scan(self) -> None:
        table: KeyPath = ()
        while True:
            self._skip(_SPACE)
            if self._at >= len(self.text):
                return
            start = self._at
            if self.text[start] == "[":
                table = self._header()
                self._skip(_REST_OF_LINE)
            elif not self._pair(table, 0):
                self._skip(_REST_OF_LINE)
            if self._at == start:
                self._at += 1

    def _skip(self, expression: re.Pattern[str]) -> None:
        match = expression.match(self.text, self._at)
        self._at = match.end() if match else self._at

    def _take(self, literal: str) -> bool:
        found = self.text.startswith(literal, self._at)
        self._at += len(literal) * found
        return found

    def _header(self) -> KeyPath:
        is_item = self._take("[[")
        if not is_item:
            self._take("[")
        keys = self._key()
        if not keys:
            return ()
        path = self._resolve(keys[:-1])
        name, offset = keys[-1]
        path = (*path, name)
        self.offsets.setdefault(path, offset)
        if is_item:
            index = self._counts.get(path, 0)
            self._counts[path] = index + 1
            path = (*path, index)
            self.offsets.setdefault(path, offset)
        elif self._counts.get(path):
            path = (*path, self._counts[path] - 1)
        return path

    def _resolve(self, keys: list[tuple[str, int]]) -> KeyPath:
        """The path that the first parts of a header mean: one that is an array of tables means its last entry."""
        path: KeyPath = ()
        for name, offset in keys:
            path = (*path, name)
            self.offsets.setdefault(path, offset)
            if count := self._counts.get(path):
                path = (*path, count - 1)
        return path

    def _key(self) -> list[tuple[str, int]]:
        """The parts of a dotted key with their offsets."""
        parts: list[tuple[str, int]] = []
        while True:
            self._skip(_BLANK)
            start = self._at
            match = _BARE.match(self.text, start)
            quoted = None if match else _STRING.match(self.text, start)
            found = match or quoted
            if found is None:
                return parts
            self._at = found.end()
            parts.append((found[0] if match else _unquote(found[0]), start))
            self._skip(_BLANK)
            if not self._take("."):
                return parts

    def _pair(self, table: KeyPath, depth: int) -> bool:
        keys = self._key()
        self._skip(_BLANK)
        if not keys or not self._take("="):
            return False
        path = table
        for name, offset in keys:
            path = (*path, name)
            self.offsets.setdefault(path, offset)
        self._skip(_BLANK)
        self._value(path, depth)
        return True

    def _value(self, path: KeyPath, depth: int) -> None:
        first = self.text[self._at : self._at + 1]
        if first in {'"', "'"} and first:
            self._skip(_STRING)
        elif first == "[" and depth < _DEPTH_MAX:
            self._array(path, depth + 1)
        elif first == "{" and depth < _DEPTH_MAX:
            self._inline_table(path, depth + 1)
        else:
            self._skip(_SCALAR)

    def _array(self, path: KeyPath, depth: int) -> None:
        self._at += 1
        index = 0
        while self._at < len(self.text):
            self._skip(_SPACE)
            if self._take("]"):
                return
            start = self._at
            self.offsets.setdefault((*path, index), start)
            self._value((*path, index), depth)
            self._skip(_SPACE)
            if self._take(","):
                index += 1
            elif self._at == start:
                return

    def _inline_table(self, path: KeyPath, depth: int) -> None:
        self._at += 1
        while self._at < len(self.text):
            self._skip(_SPACE)
            if self._take("}"):
                return
            start = self._at
            self._pair(path, depth)
            self._skip(_SPACE)
            if not self._take(",") and self._at == start:
                return


def _unquote(text: str) -> str:
    """The name that a quoted key stands for."""
    inner = text[1:-1] if len(text) > 1 and text[-1] == text[0] else text[1:]
    return inner if text.startswith("'") else _ESCAPE.sub(_unescape, inner)


def _unescape(match: re.Match[str]) -> str:
    code = match[1]
    if code[0] in "uU" and len(code) > 1:
        number = int(code[1:], 16)
        return chr(number) if number < 0x110000 else code
    return _ESCAPES.get(code, code)
