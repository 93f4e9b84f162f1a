# SPDX-License-Identifier: Apache-2.0
"""`watch = true`: reload by itself when a definition changes, told by the kernel (inotify(7)).

Python has no inotify, so libc's is called. Only names of definitions and drop-ins count; several changes close together
make one reload.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from agent.errors import CleatError
from agent.systemd import journal

_IN_ATTRIB, _IN_CLOSE_WRITE, _IN_MOVED, _IN_CREATE, _IN_DELETE = 0x4, 0x8, 0xC0, 0x100, 0x200
_IN_Q_OVERFLOW, _IN_ISDIR, _IN_ONLYDIR = 0x4000, 0x40000000, 0x01000000
_MASK = _IN_ATTRIB | _IN_CLOSE_WRITE | _IN_MOVED | _IN_CREATE | _IN_DELETE | _IN_ONLYDIR
_HEAD = struct.Struct("iIII")
_READ_SIZE = 65536
QUIET_SEC = 0.3
"""A reload begins when nothing has changed for so long,"""
LATEST_SEC = 3.0
"""or when the first change is so old."""


def events(data: bytes) -> Iterator[tuple[int, str]]:
    """(mask, name) of each struct inotify_event."""
    at = 0
    while at + _HEAD.size <= len(data):
        _, mask, _, length = _HEAD.unpack_from(data, at)
        name = data[at + _HEAD.size : at + _HEAD.size + length].split(b"\0", 1)[0]
        yield mask, os.fsdecode(name)
        at += _HEAD.size + length


def concerns(mask: int, name: str) -> bool:
    """Whether an event may change what the definitions say."""
    if mask & _IN_Q_OVERFLOW:
        return True
    if mask & _IN_ISDIR:
        return name.endswith(".toml.d") or name in {"containers", "cleat"}
    return name.endswith(".toml") and not name.startswith(".")


class Watch:
    """Calls `on_change` after changes below `folders`, which need not exist."""

    def __init__(self, folders: Iterable[Path], on_change: Callable[[], None]) -> None:
        self._folders = tuple(folders)
        self._on_change = on_change
        self._fd = -1
        self._due: asyncio.TimerHandle | None = None
        self._first = 0.0
        self._libc = ctypes.CDLL(None, use_errno=True)

    def start(self) -> None:
        """What cannot be watched is told to the journal."""
        self._fd = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            self._tell("inotify cannot be used", ctypes.get_errno())
            return
        asyncio.get_running_loop().add_reader(self._fd, self._readable)
        self._add_all()

    def close(self) -> None:
        if self._due is not None:
            self._due.cancel()
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _add_all(self) -> None:
        """Every folder with its drop-in folders, and its parent, in which it may appear; again is no harm."""
        for folder in self._folders:
            self._add(folder.parent)
            if self._add(folder):
                for entry in sorted(folder.glob("*.toml.d")):
                    self._add(entry)

    def _add(self, folder: Path) -> bool:
        if self._libc.inotify_add_watch(self._fd, os.fsencode(folder), _MASK) >= 0:
            return True
        code = ctypes.get_errno()
        if code not in {errno.ENOENT, errno.ENOTDIR}:
            self._tell(f"{folder} cannot be watched", code)
        return False

    @staticmethod
    def _tell(what: str, code: int) -> None:
        error = CleatError(what, why=os.strerror(code), hint="systemctl reload cleat after a change")
        journal.send(journal.Event.FEATURE_MISSING, "watch", error=error)

    def _readable(self) -> None:
        found = list(events(os.read(self._fd, _READ_SIZE)))
        if any(mask & (_IN_ISDIR | _IN_Q_OVERFLOW) for mask, _ in found):
            self._add_all()
        if any(concerns(mask, name) for mask, name in found):
            self._changed()

    def _changed(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._due is None:
            self._first = now
        else:
            self._due.cancel()
        self._due = loop.call_at(min(now + QUIET_SEC, self._first + LATEST_SEC), self._tell_change)

    def _tell_change(self) -> None:
        self._due = None
        self._on_change()
