# SPDX-License-Identifier: Apache-2.0
"""Lines of a container's log, put together from what conmon wrote. Pure; journal.py and crilog.py read.

conmon splits long lines: each piece but the last is marked as partial, so is a last line without newline.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from agent.cli import render

if TYPE_CHECKING:
    from collections.abc import Iterator

_LINE_CAP = 1 << 22  # characters of one joined line; longer ones are shown in parts
_STYLE = re.compile(r"\x1b\[[0-9;:]*m")  # colours and the like, harmless but not ours to show


class Line(NamedTuple):
    """One line, or if `partial` a piece. `time`: Unix seconds; `stream`: stdout, stderr or agent."""

    time: float
    stream: str
    text: str
    id: str = ""
    partial: bool = False


class Joiner:
    """Joins the pieces of each stream of one container."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[Line]] = {}
        self._id = ""

    def add(self, line: Line) -> Iterator[Line]:
        """What is complete now that `line` came. With another id begins another run of the container."""
        if line.stream == "agent":
            yield line
            return
        if line.id != self._id:
            yield from self.flush()
            self._id = line.id
        pieces = self._pieces.setdefault(line.stream, [])
        pieces.append(line)
        if not line.partial or sum(len(piece.text) for piece in pieces) > _LINE_CAP:
            del self._pieces[line.stream]
            yield _joined(pieces)

    def flush(self) -> Iterator[Line]:
        """The lines that never got their newline."""
        open_lines, self._pieces = self._pieces, {}
        for pieces in sorted(open_lines.values()):
            yield _joined(pieces)


def _joined(pieces: list[Line]) -> Line:
    if len(pieces) == 1:
        return pieces[0]._replace(partial=False)
    return pieces[0]._replace(text="".join(piece.text for piece in pieces), partial=False)


def text_of(line: Line, *, timestamps: bool) -> str:
    """The line as it is printed: raw into a pipe, safe and with its stream's colour on a terminal."""
    text = line.text
    if render.is_terminal():
        text = render.printable(_STYLE.sub("", text).rstrip("\r"), keep="\t")
    if line.stream == "agent":
        text = render.paint(f"cleat: {text}", render.DIM)
    elif line.stream == "stderr":
        text = render.paint(text, render.RED)
    return f"{render.stamp(line.time)} {text}" if timestamps else text


def json_of(line: Line) -> str:
    text = line.text.encode(errors="surrogateescape").decode(errors="replace")
    return render.compact({"time": line.time, "stream": line.stream, "text": text, "id": line.id})
