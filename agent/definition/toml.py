# SPDX-License-Identifier: Apache-2.0
"""Bytes of a TOML file to a table, or the reason why not; pure."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import tomli

from agent.definition.position import Position

SIZE_MAX = 1 << 20
# tomli's time grows with the square of the parts of one dotted key.
_DOTS_MAX = 1000
_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


class SyntaxFault(NamedTuple):
    """Why a text is no TOML."""

    reason: str
    position: Position = Position()
    hint: str = ""


def read(content: bytes) -> tuple[dict[str, Any], str] | SyntaxFault:
    """(table, text) of a file. A byte order mark and CRLF line ends are fine."""
    if len(content) > SIZE_MAX:
        return SyntaxFault(f"the file has {len(content)} bytes", hint=f"at most {SIZE_MAX} are read")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        before = content[: e.start].decode(errors="replace")
        reason = f"byte 0x{content[e.start]:02x} is not UTF-8"
        return SyntaxFault(reason, _position(before, len(before)), "save the file as UTF-8")
    return read_text(text)


def read_text(text: str) -> tuple[dict[str, Any], str] | SyntaxFault:
    if (nul := text.find("\0")) >= 0:
        return SyntaxFault("contains a NUL character", _position(text, nul), "the file is damaged, or is no text")
    if too_dotted := _too_dotted(text):
        return SyntaxFault(f"more than {_DOTS_MAX} dots in one line", Position(too_dotted, 1), "break the line")
    try:
        return tomli.loads(text), text
    except tomli.TOMLDecodeError as e:
        return _fault(text, str(e))
    except RecursionError:
        return SyntaxFault("arrays or tables are nested too deeply")
    except ValueError as e:
        return SyntaxFault(str(e))


def _fault(text: str, message: str) -> SyntaxFault:
    found = _PLACE.search(message)
    if found is None:
        return SyntaxFault(message)
    at = Position(int(found[1]), int(found[2])) if found[1] else _position(text, len(text.rstrip()))
    return SyntaxFault(message[: found.start()], at, _hint(text, at))


def _hint(text: str, at: Position) -> str:
    """What is most often meant by a line that is no TOML."""
    lines = text.splitlines()
    line = lines[at.line - 1].strip() if 0 < at.line <= len(lines) else ""
    if re.match(r"[\w.-]+\s*=\s*[A-Za-z/]", line):
        return "strings stand in quotes"
    return 'a key is followed by "=" and a value' if re.match(r"[\w.-]+\s*:", line) else ""


def _position(text: str, offset: int) -> Position:
    return Position(text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset))


def _too_dotted(text: str) -> int:
    """The number of the first line with a run of dots that no key needs, else 0."""
    if len(text) < 4096 or text.count(".") <= _DOTS_MAX:
        return 0
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > _DOTS_MAX and any(part.count(".") > _DOTS_MAX for part in line.split("=")):
            return number
    return 0
