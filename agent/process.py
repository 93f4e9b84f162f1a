# SPDX-License-Identifier: Apache-2.0
"""Processes: know and signal one without trusting its number, see its end on a pidfd (pidfd_open(2)) in the loop."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import functools
import gc
import os
import select
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from agent import files
from agent.errors import CleatError
from agent.spawn import child

_UNKNOWN_CODE = 255


@functools.cache
def boot_id() -> str:
    """This boot's id, from random(4)'s /proc/sys/kernel/random/boot_id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """Start time in clock ticks since boot, field 22 of proc_pid_stat(5); None where there is no such process.

    A zombie counts as gone: it holds its number but nothing that could be signalled.
    """
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fields = os.read(fd, 4096).rpartition(b")")[2].split()
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


class ProcessRef(msgspec.Struct, frozen=True):
    """A process that can be told from a later one with the same number."""

    pid: int
    start_time: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessRef | None:
        started = start_time(pid)
        return None if started is None else cls(pid, started, boot_id())

    def is_alive(self) -> bool:
        return self.boot_id == boot_id() and start_time(self.pid) == self.start_time

    def session(self) -> int:
        """The number of its session (setsid(2)), its own where it leads it, and where it is gone.

        No other process can get that number while the session has members.
        """
        try:
            number = os.getsid(self.pid)
        except OSError:
            return self.pid
        return number if number and self.is_alive() else self.pid

    def open_pidfd(self) -> int | None:
        """A pidfd of exactly this process, or None when it is gone. The caller closes it."""
        try:
            fd = os.pidfd_open(self.pid)
        except OSError as e:
            if e.errno in {errno.ESRCH, errno.EINVAL}:
                return None
            raise
        # Looked at after the fd is held: from here on the number cannot be used again.
        if self.is_alive():
            return fd
        os.close(fd)
        return None

    def send_signal(self, signum: int) -> bool:
        """Send to this process and no other; False when it is gone."""
        fd = self.open_pidfd()
        if fd is None:
            return False
        try:
            signal.pidfd_send_signal(fd, signum)
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)
        return True


def is_named(pid: int, word: str) -> bool:
    """Whether `word` is an argument of the process, proc_pid_cmdline(5)."""
    try:
        return word.encode() in files.read(f"/proc/{pid}/cmdline").split(b"\0")
    except OSError:
        return False


async def pidfd_ready(pidfd: int) -> None:
    """Wait until the process of `pidfd` has ended. Takes no ownership; the caller sets the deadline."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    loop.add_reader(pidfd, _resolve, done)
    try:
        await done
    finally:
        loop.remove_reader(pidfd)


def has_ended(pidfd: int) -> bool:
    """Whether the process of `pidfd` has ended (pidfd_open(2): it is readable then)."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


async def writable(fd: int) -> None:
    """Wait until something can be written to a pipe or socket; the caller sets the deadline."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    loop.add_writer(fd, _resolve, done)
    try:
        await done
    finally:
        loop.remove_writer(fd)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Process:
    """A child of ours. `wait()` reaps it exactly once; closing without waiting leaves a zombie, so `reap()` always."""

    def __init__(
        self, pid: int, argv: Sequence[str], *, pidfd: int = -1, ended: asyncio.Future[int] | None = None
    ) -> None:
        """`ended` will have the exit code of one that is the executor's child; its pidfd becomes ours."""
        self.pid = pid
        self.argv = tuple(argv)
        self.pidfd = os.pidfd_open(pid) if pidfd < 0 else pidfd
        self._ended = ended
        self._code: int | None = None

    async def wait(self) -> int:
        """The exit code, 128+n when signal n ended it. Raises CleatError when nobody can tell."""
        if self._code is None:
            if self._ended is None:
                await pidfd_ready(self.pidfd)
                self._collect()
            else:
                self._code = await asyncio.shield(self._ended)
                self._close()
        assert self._code is not None
        return self._code

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Signal it; nothing happens when it has ended."""
        if self._code is None and self.pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signum)

    async def reap(self) -> int:
        """Kill if still there, then wait; 255 where nobody can tell how it ended."""
        self.kill()
        try:
            return await self.wait()
        except CleatError:
            self._code = _UNKNOWN_CODE
            self._close()
            return self._code

    def _close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def _collect(self) -> None:
        if self._code is not None:
            return
        self._code = child.reap(self.pidfd)
        self._close()


def release_memory() -> None:
    """Give free heap back to the kernel: collect, then malloc_trim(3) where the C library has it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
