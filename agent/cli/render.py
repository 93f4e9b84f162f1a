# SPDX-License-Identifier: Apache-2.0
"""Text for people: aligned tables, times, colours, errors.

What came out of a container is never printed raw on a terminal.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agent.errors import CleatError

RED, GREEN, YELLOW, DIM, BOLD = "31", "32", "33", "2", "1"

# C0 and C1 controls and DEL (they drive terminals), line separators, and the marks that reorder text.
_UNSAFE = (
    *range(0x20),
    *range(0x7F, 0xA0),
    0x200E,
    0x200F,
    *range(0x2028, 0x202F),
    *range(0x2066, 0x206A),
    *range(0xD800, 0xE000),
)
_SPANS = ((86400 * 365.25, "y"), (86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_SIZES = ((1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K"))


def printable(text: str, *, keep: str = "") -> str:
    r"""`text` with all that could drive a terminal written as \x1b or \u202e; `keep` is left alone."""
    if text.isprintable():
        return text
    return text.translate({code: _escape(code) for code in _UNSAFE if chr(code) not in keep})


def _escape(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8 (PEP 383)
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def report(error: CleatError) -> int:
    """One error on stderr; gives its exit code."""
    sys.stdout.flush()
    print(f"cleat: {printable(str(error), keep=chr(10))}", file=sys.stderr)
    return error.exit_code


def is_terminal() -> bool:
    return sys.stdout.isatty()


def use_colours() -> bool:
    """Only on a terminal that can, and not when https://no-color.org is asked for."""
    return is_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def paint(text: str, colour: str) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if colour and use_colours() else text


def width(text: str) -> int:
    """Columns on a terminal."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum((not combining(c)) * (1 + (east_asian_width(c) in "WF")) for c in text)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> list[list[str]]:
    """Cells padded to their columns' widths and made printable; `right` names the columns of numbers."""
    grid = [list(header), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(width(row[column]) for row in grid) for column in range(len(header))]
    for row in grid:
        for column, title in enumerate(header):
            fill = " " * (widths[column] - width(row[column]))
            if title in right:
                row[column] = fill + row[column]
            elif column < len(header) - 1:
                row[column] += fill
    return grid


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    for row in table(header, rows, right=right):
        print("  ".join(row).rstrip())


def print_records(records: list[dict[str, Any]]) -> None:
    """A table of whatever the records hold."""
    if not records:
        return
    keys = list(records[0])
    header = [key.removesuffix("_bytes").upper().replace("_", " ") for key in keys]
    rows = [[_cell(key, record.get(key)) for key in keys] for record in records]
    numbers = [title for title, key in zip(header, keys, strict=True) if not isinstance(records[0][key], str)]
    print_table(header, rows, right=numbers)


def _cell(key: str, value: Any) -> str:
    if value is None or value == "":
        return "-"
    if key.endswith("_bytes"):
        return size(value)
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def print_tree(value: dict[str, Any], indent: str = "") -> None:
    """Keys and values, tables indented."""
    for key, each in value.items():
        label = f"{indent}{printable(key)}:"
        if isinstance(each, dict):
            print(label)
            print_tree(each, indent + "  ")
        else:
            print(f"{label} {printable(_plain(each))}")


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text or "-"


def cut(text: str, columns: int) -> str:
    """`text` on at most `columns` columns, its cut marked."""
    if width(text) <= columns:
        return text
    kept = ""
    for character in text:
        if width(kept + character) > columns - 1:
            break
        kept += character
    return kept + "…"


def terminal_columns() -> int:
    """0 when the output is no terminal and may be as long as it likes."""
    return os.get_terminal_size(sys.stdout.fileno()).columns if is_terminal() else 0


def print_json(text: str) -> None:
    """The agent's JSON: indented for a person, as it is for a program."""
    print(pretty(json.loads(text)) if is_terminal() else text)


def pretty(value: Any) -> str:
    r"""Indented JSON. JSON escapes C0 controls; here the other unsafe characters become \uXXXX too."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if text.replace("\n", "").isprintable():
        return text
    return text.translate({code: f"\\u{code:04x}" for code in _UNSAFE if code >= 0x7F})


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def span(seconds: float) -> str:
    """The two largest units, as systemd writes spans: "2min 5s", "3d 4h"."""
    left = max(0.0, seconds)
    parts = []
    for size, unit in _SPANS:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{int(count)}{unit}")
        elif parts:
            break
        if len(parts) == 2:
            break
    return " ".join(parts) or "0s"


def moment(seconds: float) -> str:
    """A local time as systemctl writes it."""
    return time.strftime("%a %Y-%m-%d %H:%M:%S %Z", time.localtime(seconds))


def stamp(seconds: float) -> str:
    """A local time for the beginning of a line, with its offset: RFC 3339."""
    local = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))
    offset = time.strftime("%z", time.localtime(seconds))
    return f"{local}.{int(seconds * 1e6) % 1_000_000:06}{offset[:3]}:{offset[3:]}"


def size(count: float) -> str:
    """Bytes with systemd's suffixes: 1.5G."""
    for unit, suffix in _SIZES:
        if count >= unit:
            return f"{count / unit:.1f}{suffix}"
    return f"{count:.0f}B"
