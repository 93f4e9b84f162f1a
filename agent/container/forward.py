# SPDX-License-Identifier: Apache-2.0
"""A foreground container's output passed on by its parent, where it matters who writes it.

journald attributes each line of a unit's stdout to the process that wrote it. A container's processes live in a scope
of their own, so what they write themselves does not show in `journalctl -u` of the caller's unit; what the parent
writes does.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

_CHUNK = 1 << 16


class Forward:
    """A pipe whose other end, `write_end`, is the container's; what comes goes to `target`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._read_end, False)
        asyncio.get_running_loop().add_reader(self._read_end, self._pass_on)

    def _pass_on(self) -> bool:
        """Some of what is there; False when there is no more."""
        try:
            data = os.read(self._read_end, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            asyncio.get_running_loop().remove_reader(self._read_end)
        view = memoryview(data)
        with suppress(OSError):  # nobody reads any more: that is the caller's wish
            while view:
                view = view[os.write(self._target, view) :]
        return bool(data)

    def handed_over(self) -> None:
        """The container has its end."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def close(self) -> None:
        """Pass on what is still there."""
        while self._pass_on():
            pass
        asyncio.get_running_loop().remove_reader(self._read_end)
        os.close(self._read_end)
        self.handed_over()


def is_journal(fd: int, stream: str) -> bool:
    """Whether an fd is what JOURNAL_STREAM= names: `device:inode` (systemd.exec(5))."""
    found = os.fstat(fd)
    return stream == f"{found.st_dev}:{found.st_ino}"
