# SPDX-License-Identifier: Apache-2.0
"""Environment files: systemd.exec(5), EnvironmentFile=; pure.

Lines are NAME=VALUE. Lines that start with "#" or ";" are comments, a backslash at the end of a line continues it,
single quotes keep everything, double quotes everything but a backslash before one of "\\`$ and line ends.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from agent.definition import words
from agent.definition.values import InvalidValue, shown


class Fault(NamedTuple):
    """What is wrong in a line, counted from 1."""

    line: int
    reason: str
    hint: str = ""


_FAULTS_MAX = 20
_ASSIGNMENT = re.compile(r"[ \t]*(?:export[ \t]+)?([^=\s#;][^=\n]*?)[ \t]*=[ \t]*")
_SKIPPED = re.compile(r"[ \t]*(?:[#;](?:\\\n|[^\n])*)?(?:\n|$)")
_IN_DOUBLE = '"\\`$'


def parse(text: str) -> tuple[dict[str, str], list[Fault]]:
    """All variables (the last of a name wins) and all faults."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    found: dict[str, str] = {}
    faults: list[Fault] = []
    at = 0
    while at < len(text):
        skipped = _SKIPPED.match(text, at)
        if skipped is not None and skipped.end() > at:
            at = skipped.end()
            continue
        try:
            name, value, end = _assignment(text, at)
            found[name] = words.variable(name, value)
        except InvalidValue as e:
            faults.append(Fault(text.count("\n", 0, at) + 1, e.reason, e.hint))
            end = _next_line(text, at)
        if len(faults) == _FAULTS_MAX:
            break
        at = end
    return found, faults


def _next_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end + 1


def _assignment(text: str, at: int) -> tuple[str, str, int]:
    match = _ASSIGNMENT.match(text, at)
    if match is None:
        raise InvalidValue(f"{shown(text[at : _next_line(text, at)].strip())} is not NAME=VALUE")
    name = match[1]
    if not re.fullmatch(r"[!-<>-~]+", name):
        raise InvalidValue(f"{shown(name)} is not the name of a variable", "letters, digits and '_'")
    value, end = _value(text, match.end())
    return name, value, end


def _value(text: str, at: int) -> tuple[str, int]:
    """The value that starts at `at`, and where the next line starts."""
    parts: list[str] = []
    kept = 0  # trailing blanks outside of quotes do not belong to the value
    while at < len(text) and text[at] != "\n":
        char = text[at]
        if char in "'\"":
            piece, at = _quoted(text, at + 1, char)
        elif char == "\\":
            piece, at = text[at + 1 : at + 2].replace("\n", ""), at + 2
        else:
            piece, at = char, at + 1
        parts.append(piece)
        if char not in " \t":
            kept = len(parts)
    return "".join(parts[:kept]), at + 1


def _quoted(text: str, at: int, quote: str) -> tuple[str, int]:
    parts: list[str] = []
    while at < len(text):
        char = text[at]
        if char == quote:
            return "".join(parts), at + 1
        if char == "\\" and quote == '"':
            after = text[at + 1 : at + 2]
            parts.append("" if after == "\n" else after if after and after in _IN_DOUBLE else "\\" + after)
            at += 2
        else:
            parts.append(char)
            at += 1
    raise InvalidValue(f"a quote {quote} is not closed", "close it")
