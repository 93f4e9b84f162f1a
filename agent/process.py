# SPDX-License-Identifier: Apache-2.0
"""Processes: run a tool to its end, spawn with an exact fd table, know and signal one without trusting its number.

posix_spawn(3) is used for everything: no fork of this process, no code of ours between fork and exec. Ends are seen on
pidfds (pidfd_open(2)) in the event loop. Every fd of the agent is close-on-exec, so a child has what its table says.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import functools
import gc
import os
import select
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import CleatError, CommandNotExecutable, CommandNotFound, DeadlineExceeded

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_RESET_SIGNALS = (
    signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGCHLD,
)
_CHUNK = 65536


class Result(msgspec.Struct, frozen=True):
    """How a tool ended: exit code (128+n for signal n) and its capped output."""

    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """The tool's own words: stderr, else stdout, stripped."""
        return (self.stderr.strip() or self.stdout.strip()).decode(errors="replace")


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


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Process:
    """A child of ours. `wait()` reaps it exactly once; closing without waiting leaves a zombie, so `reap()` always."""

    def __init__(self, pid: int, argv: Sequence[str]) -> None:
        self.pid = pid
        self.argv = tuple(argv)
        self.pidfd = os.pidfd_open(pid)
        self._code: int | None = None

    async def wait(self) -> int:
        """The exit code, 128+n when signal n ended it."""
        if self._code is None:
            await pidfd_ready(self.pidfd)
            self._collect()
        assert self._code is not None
        return self._code

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Signal it; nothing happens when it has ended."""
        if self._code is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signum)

    async def reap(self) -> int:
        """Kill if still there, then wait."""
        self.kill()
        return await self.wait()

    def _collect(self) -> None:
        if self._code is not None:
            return
        info = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        assert info is not None
        self._code = info.si_status if info.si_code == os.CLD_EXITED else 128 + info.si_status
        os.close(self.pidfd)
        self.pidfd = -1


def base_environment() -> dict[str, str]:
    """The environment of every tool: a fixed PATH and a UTF-8 locale, nothing inherited."""
    return {"PATH": _DEFAULT_PATH, "LANG": "C.UTF-8"}


def _spawn_error(argv: Sequence[str], e: OSError) -> CleatError:
    command = argv[0]
    if isinstance(e, FileNotFoundError):
        return CommandNotFound(f"cannot run {command}", why=e.strerror or "", hint=f"install {Path(command).name}")
    if isinstance(e, PermissionError) or e.errno in {errno.ENOEXEC, errno.ELIBBAD}:
        return CommandNotExecutable(
            f"cannot run {command}", why=e.strerror or "", hint=f"check the mode and file type of {command}"
        )
    return CleatError(f"cannot run {command}", why=e.strerror or str(e))


def spawn(argv: Sequence[str], *, env: Mapping[str, str], fds: Sequence[int], new_group: bool = True) -> Process:
    """Start `argv` (absolute path first, or looked up in env's PATH) with child fd i being our `fds[i]`, and no other.

    Raises CommandNotFound or CommandNotExecutable with the kernel's reason.
    """
    count = len(fds)
    moved: list[int] = []
    try:
        actions: list[tuple[int, int, int]] = []
        for target, source in enumerate(fds):
            if source < count:
                source = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, count)
                moved.append(source)
            actions.append((os.POSIX_SPAWN_DUP2, source, target))
        start = os.posix_spawn if "/" in argv[0] else os.posix_spawnp
        group: dict[str, Any] = {"setpgroup": 0} if new_group else {}
        try:
            pid = start(
                argv[0], list(argv), dict(env), file_actions=actions, setsigmask=(), setsigdef=_RESET_SIGNALS, **group
            )
        except OSError as e:
            raise _spawn_error(argv, e) from e
    finally:
        for fd in moved:
            os.close(fd)
    return Process(pid, argv)


def release_memory() -> None:
    """Give free heap back to the kernel: collect, then malloc_trim(3) where the C library has it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


@functools.cache
def null_fd() -> int:
    """/dev/null for reading and writing, opened once."""
    fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) if fd < 10 else fd


class _Capture:
    """Reads one pipe to its end in the loop, keeping at most `limit` bytes and dropping the rest."""

    def __init__(self, limit: int, on_output: Callable[[bytes], None] | None = None) -> None:
        self._limit = limit
        self._on_output = on_output
        self._size = 0
        self._parts: list[bytes] = []
        self._fd, self.write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self.write_end, True)
        self._loop = asyncio.get_running_loop()
        self.finished = self._loop.create_future()
        self._loop.add_reader(self._fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return
        if data and self._on_output is not None:
            self._on_output(data)
        if not data:
            self.close()
        elif self._size < self._limit:
            self._parts.append(data[: self._limit - self._size])
            self._size += len(data)

    def drain(self) -> None:
        """Take what is there now: a grandchild may hold the write end for ever."""
        while self._fd >= 0:
            before = self._size
            self._read()
            if self._size == before:
                return

    def close_write_end(self) -> None:
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def close(self) -> None:
        self.close_write_end()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        if not self.finished.done():
            self.finished.set_result(None)

    @property
    def data(self) -> bytes:
        return b"".join(self._parts)


async def _feed(fd: int, data: bytes) -> None:
    loop = asyncio.get_running_loop()
    view = memoryview(data)
    os.set_blocking(fd, False)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            writable = loop.create_future()
            loop.add_writer(fd, _resolve, writable)
            try:
                await writable
            finally:
                loop.remove_writer(fd)
        except BrokenPipeError:
            return


async def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = 10.0,  # noqa: ASYNC109 the deadline also covers kill and reap
    stdin: bytes = b"",
    limit: int = 1 << 20,
    pass_fds: Sequence[int] = (),
    on_output: Callable[[bytes], None] | None = None,
) -> Result:
    """Run a tool to its end. The exit code is the caller's to judge; output beyond `limit` bytes each is dropped.

    `pass_fds` become the child's fds 3 and up, in order; `on_output` sees all of stdout as it comes. Raises
    CommandNotFound or CommandNotExecutable when it cannot be run, DeadlineExceeded (the tool is killed and reaped)
    after `timeout` seconds.
    """
    out, err = _Capture(limit, on_output), _Capture(limit)
    stdin_read, stdin_write = os.pipe2(os.O_CLOEXEC) if stdin else (null_fd(), -1)
    process: Process | None = None
    try:
        environment = base_environment() if env is None else env
        fds = (stdin_read, out.write_end, err.write_end, *pass_fds)
        process = spawn(argv, env=environment, fds=fds)
        out.close_write_end()
        err.close_write_end()
        async with asyncio.timeout(timeout):
            if stdin:
                os.close(stdin_read)
                stdin_read = -1
                await _feed(stdin_write, stdin)
                os.close(stdin_write)
                stdin_write = -1
            code = await process.wait()
        out.drain()
        err.drain()
        return Result(code, out.data, err.data)
    except TimeoutError as e:
        raise DeadlineExceeded(
            f"{shlex.join(argv)} did not end within {timeout:g} s",
            why=err.data.decode(errors="replace").strip(),
        ) from e
    finally:
        if process is not None:
            await asyncio.shield(process.reap())
        for fd in {stdin_read, stdin_write} - {-1, null_fd()}:
            os.close(fd)
        out.close()
        err.close()
