# SPDX-License-Identifier: Apache-2.0
"""Whose socket is in the way: from a socket's inode to the process that has it open, for error messages.

/proc/PID/fd is searched for a bounded time only: the answer makes a message better, its absence makes
nothing wrong.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from agent.systemd.text import clean

if TYPE_CHECKING:
    from collections.abc import Iterable

_SEARCH_SEC = 0.2


def holder_of(inodes: Iterable[int]) -> str:
    """`COMMAND (pid N)` of a process that holds one of these sockets; "" when none was found in time."""
    wanted = {f"socket:[{inode}]" for inode in inodes if inode}
    deadline = time.monotonic() + _SEARCH_SEC
    if not wanted:
        return ""
    # The newest first: kernel threads and what came with the boot have low numbers.
    for pid in sorted(_pids(), reverse=True):
        if pid != os.getpid() and _holds(pid, wanted):
            return f"{_command(pid)} (pid {pid})"
        if time.monotonic() > deadline:
            break
    return "this agent" if _holds(os.getpid(), wanted) else ""


def _pids() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]


def _holds(pid: int, wanted: set[str]) -> bool:
    try:
        return any(_link(fd) in wanted for fd in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


def _command(pid: int) -> str:
    try:
        return clean(Path(f"/proc/{pid}/comm").read_text(errors="replace").strip())
    except OSError:
        return "a process"
