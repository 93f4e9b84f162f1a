# SPDX-License-Identifier: Apache-2.0
"""Programs started through the executor: as if they were the agent's own, and what happens when it is lost."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from agent.errors import CleatError, CommandNotFound, DeadlineExceeded
from agent.executor import Executor
from agent.process import ProcessRef
from agent.spawn import wire
from agent.spawn.child import base_environment, bounding_set
from agent.spawn.request import Files, Request
from agent.spawn.spawner import Remote
from agent.spawn.tool import run

T = TypeVar("T")


class Served:
    """An executor process for whoever connects, one after the other; lose() replaces it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(os.fspath(path))
        self._listener.listen()
        self._pid = self._start()

    def _start(self) -> int:
        pid = os.fork()
        if pid:
            return pid
        try:
            while True:
                connection, _ = self._listener.accept()
                Executor(connection).serve()
                connection.close()
        finally:
            os._exit(1)

    def _end(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def lose(self) -> None:
        self._end()
        self._pid = self._start()

    def close(self) -> None:
        self._end()
        self._listener.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    server = Served(tmp_path / "executor.sock")
    yield server
    server.close()


def with_remote(served: Served, work: Callable[[Remote], Awaitable[T]]) -> T:
    async def whole() -> T:
        remote = Remote(served.path)
        try:
            return await work(remote)
        finally:
            remote.close()

    return asyncio.run(whole())


def test_a_tool_runs_as_if_it_were_ours(served: Served) -> None:
    result = with_remote(served, lambda r: run(["sh", "-c", "cat; echo no >&2; exit 3"], stdin=b"yes", spawner=r))
    assert (result.returncode, result.stdout, result.stderr) == (3, b"yes", b"no\n")
    assert with_remote(served, lambda r: run(["sh", "-c", "kill -9 $$"], spawner=r)).returncode == 137


def test_what_cannot_be_run_says_why(served: Served) -> None:
    with pytest.raises(CommandNotFound, match=r"cannot run /no/such: No such file .*install such"):
        with_remote(served, lambda r: run(["/no/such"], spawner=r))


def test_a_deadline_ends_it(served: Served) -> None:
    with pytest.raises(DeadlineExceeded, match="sleep 60 did not end"):
        with_remote(served, lambda r: run(["sleep", "60"], timeout=0.1, spawner=r))


def test_many_at_once_keep_their_answers(served: Served) -> None:
    async def many(remote: Remote) -> list[bytes]:
        results = await asyncio.gather(*(run(["echo", str(i)], spawner=remote) for i in range(40)))
        return [result.stdout for result in results]

    assert with_remote(served, many) == [f"{i}\n".encode() for i in range(40)]


def test_long_requests_and_many_fds(served: Served) -> None:
    text = "x" * 100_000
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.write(writing, b"through")
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    fds = [null] * 600 + [reading]
    script = "echo ${#LONG}; readlink /proc/$$/fd/603 | cut -d: -f1; head -c 7 /proc/$$/fd/603"
    env = base_environment() | {"LONG": text}
    result = with_remote(served, lambda r: run(["sh", "-c", script], env=env, pass_fds=fds, spawner=r))
    assert result.stdout == b"100000\npipe\nthrough"
    for fd in (reading, writing, null):
        os.close(fd)


def test_no_fd_is_left(served: Served) -> None:
    async def twice(remote: Remote) -> tuple[int, int]:
        await run(["true"], spawner=remote)
        before = len(os.listdir("/proc/self/fd"))
        await run(["true"], pass_fds=[0] * 300, spawner=remote)
        with pytest.raises(CommandNotFound):
            await run(["/no/such"], spawner=remote)
        return before, len(os.listdir("/proc/self/fd"))

    before, after = with_remote(served, twice)
    assert after == before


def test_a_lost_executor_is_said_and_the_next_one_found(served: Served) -> None:
    async def lose(remote: Remote) -> bytes:
        waiting = asyncio.create_task(run(["sleep", "60"], spawner=remote))
        await run(["true"], spawner=remote)
        served.lose()
        with pytest.raises(CleatError, match="the executor ended"):
            await waiting
        return (await run(["echo", "again"], spawner=remote)).stdout

    assert with_remote(served, lose) == b"again\n"


def test_no_executor_is_said(tmp_path: Path) -> None:
    async def ask() -> None:
        await run(["true"], spawner=Remote(tmp_path / "none"))

    with pytest.raises(CleatError, match=r"cannot reach the executor .*systemctl restart cleat-executor\.socket"):
        asyncio.run(ask())


def test_nobody_wants_it_any_more(served: Served, tmp_path: Path) -> None:
    note = tmp_path / "pid"

    async def cancel(remote: Remote) -> None:
        request = Request(argv=("sh", "-c", f"echo $$ >{note}; exec sleep 60"), env=base_environment(), fds=(0, 1, 2))
        spawning = asyncio.create_task(remote.spawn(request, (0, 1, 2)))
        await asyncio.sleep(0)
        spawning.cancel()
        await asyncio.gather(spawning, return_exceptions=True)
        # The executor does one thing after the other: with this answer, that one is over.
        await run(["true"], spawner=remote)

    with_remote(served, cancel)
    if not note.exists() or not note.read_text():
        return
    left = ProcessRef.of(int(note.read_text()))
    pidfd = left.open_pidfd() if left is not None else None
    if pidfd is not None:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(5000)
        os.close(pidfd)


def test_what_children_can_have(served: Served) -> None:
    assert with_remote(served, lambda r: r.bounding_set()) == bounding_set()


def test_secrets_have_no_text() -> None:
    files = Files(target="/x", content={"key": b"hunter2"}, size=4096, uid=0, gid=0)
    assert "hunter2" not in repr(Request(argv=("x",), env={}, fds=(), cover="/c", mounts=(files,)))
    assert b"hunter2" in wire.encode(wire.Spawn(1, Request(argv=("x",), env={}, fds=(), mounts=(files,))))
