# SPDX-License-Identifier: Apache-2.0
"""Run a tool to its end."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Callable, Mapping, Sequence

import msgspec

from agent.errors import DeadlineExceeded
from agent.process import Process, writable
from agent.spawn.child import base_environment, null_fd
from agent.spawn.request import Request
from agent.spawn.spawner import HERE, Spawner

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


class _Capture:
    """Reads one pipe to its end in the loop, keeping at most `limit` bytes and dropping the rest."""

    def __init__(self, limit: int, on_output: Callable[[bytes], None] | None = None, *, at_end: bool = False) -> None:
        self._limit = limit
        self._on_output = on_output
        self._size = 0
        self._parts: list[bytes] = []
        self._fd, self.write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self.write_end, True)
        self._loop = None if at_end else asyncio.get_running_loop()
        if self._loop is not None:
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
            if self._loop is not None:
                self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    @property
    def data(self) -> bytes:
        return b"".join(self._parts)


async def _feed(fd: int, data: bytes) -> None:
    view = memoryview(data)
    os.set_blocking(fd, False)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            await writable(fd)
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
    is_terse: bool = False,
    is_unwritable: bool = False,
    spawner: Spawner = HERE,
) -> Result:
    """Run a tool to its end. The exit code is the caller's to judge; output beyond `limit` bytes each is dropped.

    It has the agent's own rights, few as they are, unless `spawner` is the executor. `pass_fds` become the child's fds
    3 and up, in order; `on_output` sees all of stdout as it comes. What `is_terse` says no more than a pipe holds
    (64 KiB), and is read when it has ended. With `is_unwritable` it is run from a read-only mount
    (spawn.unwritable). Raises CommandNotFound or CommandNotExecutable when it cannot be run, DeadlineExceeded (the tool
    is killed and reaped) after `timeout` seconds.
    """
    out, err = _Capture(limit, on_output, at_end=is_terse), _Capture(limit, at_end=is_terse)
    stdin_read, stdin_write = os.pipe2(os.O_CLOEXEC) if stdin else (null_fd(), -1)
    process: Process | None = None
    try:
        fds = (stdin_read, out.write_end, err.write_end, *pass_fds)
        request = Request(
            argv=tuple(argv),
            env=base_environment() if env is None else env,
            fds=tuple(range(len(fds))),
            unwritable=argv[0] if is_unwritable else "",
        )
        process = await spawner.spawn(request, fds)
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
        err.drain()
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
