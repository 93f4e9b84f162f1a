# SPDX-License-Identifier: Apache-2.0
"""Lines out of a k8s-file log: TIME STREAM TAG TEXT, tag F (full) or P (partial), Kubernetes' CRI format."""

from __future__ import annotations

import os
import subprocess
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.lines import Line
from agent.errors import CleatError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

_BLOCK = 1 << 16


def parse(raw: bytes) -> Line | None:
    """One line of the file; None when it is not in the format (the rest of one that was cut by rotation)."""
    time, stream, tag, text = (*raw.removesuffix(b"\n").split(b" ", 3), b"", b"", b"")[:4]
    try:
        when = datetime.fromisoformat(time.decode()).timestamp()
    except ValueError:
        return None
    if stream not in {b"stdout", b"stderr"} or tag[:1] not in {b"F", b"P"}:
        return None
    return Line(when, stream.decode(), text.decode(errors="surrogateescape"), partial=tag[:1] == b"P")


def read(path: str, *, last: int | None, follow: bool) -> Iterator[Line | None]:
    """The pieces in the file, the `last` whole lines or all of them; None when it has no more for now."""
    try:
        with Path(path).open("rb") as file:
            file.seek(0 if last is None else _start_of_last(file, last))
            yield from _parsed(file)
            end = file.tell()
    except OSError as error:
        raise CleatError("cannot read the log", file=path, why=error.strerror or str(error)) from error
    yield None
    if follow:
        yield from _follow(path, end)


def _parsed(file: BinaryIO) -> Iterator[Line]:
    for raw in file:
        if line := parse(raw):
            yield line


def _follow(path: str, offset: int) -> Iterator[Line | None]:
    """What is appended from `offset` on; tail(1) watches the file and finds it again after a rotation."""
    command = ["tail", "-q", "-c", f"+{offset + 1}", "-F", "--", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tail:
        try:
            assert tail.stdout is not None
            for raw in tail.stdout:
                if line := parse(raw):
                    yield line
                    yield None
        finally:
            tail.terminate()


def _start_of_last(file: BinaryIO, count: int) -> int:
    """The offset at which the last `count` whole lines begin; a piece counts with the line it ends in."""
    position = file.seek(0, os.SEEK_END)
    if not count:
        return position
    tail = b""
    block = _BLOCK
    while position > 0:
        step = min(block, position)
        position -= step
        block *= 2
        file.seek(position)
        tail = file.read(step) + tail
        ends = _whole_line_ends(tail, skip_first=position > 0)
        if len(ends) > count:
            return position + ends[-count - 1]
    return 0


def _whole_line_ends(block: bytes, *, skip_first: bool) -> list[int]:
    """Offsets in `block` right after each line tagged F; its first line may have been cut."""
    ends = []
    position = 0
    for number, raw in enumerate(block.splitlines(keepends=True)):
        position += len(raw)
        if raw.split(b" ", 3)[2:3] == [b"F"] and not (skip_first and number == 0):
            ends.append(position)
    return ends
