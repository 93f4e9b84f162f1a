# SPDX-License-Identifier: Apache-2.0
"""Tools, spawning with an exact fd table, processes that can be told apart. Real processes throughout."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import msgspec
import pytest

from agent import process
from agent.errors import CommandNotExecutable, CommandNotFound, DeadlineExceeded
from agent.spawn import child, tool
from agent.spawn.request import Request
from agent.spawn.spawner import HERE


def test_output_and_exit_code() -> None:
    result = asyncio.run(tool.run(["/bin/sh", "-c", "echo out; echo err >&2; exit 3"]))
    assert (result.returncode, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
    assert result.text == "err"


def test_a_signal_is_128_and_its_number() -> None:
    assert asyncio.run(tool.run(["/bin/sh", "-c", "kill -9 $$"])).returncode == 137


def test_stdin_arrives_whole() -> None:
    data = os.urandom(300_000)
    assert asyncio.run(tool.run(["cat"], stdin=data, limit=1 << 20)).stdout == data


def test_output_is_capped() -> None:
    result = asyncio.run(tool.run(["/bin/sh", "-c", "head -c 100000 /dev/zero"], limit=1000))
    assert len(result.stdout) == 1000


def test_environment_comes_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("NOTIFY_SOCKET", "/x")
    lines = asyncio.run(tool.run(["env"])).stdout.decode().splitlines()
    assert {line.partition("=")[0] for line in lines} <= {"PATH", "LC_CTYPE", "PWD", "SHLVL", "_"}


def test_what_cannot_be_run_is_said() -> None:
    with pytest.raises(CommandNotFound, match="No such file"):
        asyncio.run(tool.run(["/nonexistent/tool"]))
    with pytest.raises(CommandNotExecutable):
        asyncio.run(tool.run(["/etc/passwd"]))


def test_deadline_kills_and_reaps() -> None:
    async def overdue() -> None:
        with pytest.raises(DeadlineExceeded, match=r"sleep 60 did not end within 0\.1 s"):
            await tool.run(["sleep", "60"], timeout=0.1)

    asyncio.run(overdue())
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_grandchild_that_keeps_the_pipe_does_not_hold_us() -> None:
    result = asyncio.run(asyncio.wait_for(tool.run(["/bin/sh", "-c", "sleep 5 & echo done"]), 3))
    assert result.stdout == b"done\n"


def test_the_child_has_exactly_its_table() -> None:
    read_end, write_end = os.pipe()
    os.set_inheritable(read_end, True)  # noqa: FBT003
    out_read, out_write = os.pipe2(os.O_CLOEXEC)

    async def listing() -> None:
        request = Request(argv=("/bin/sh", "-c", "ls /proc/$$/fd"), env=child.base_environment(), fds=(0, 1, 2, 3))
        started = await HERE.spawn(request, (child.null_fd(), out_write, 2, write_end))
        assert await started.wait() == 0

    asyncio.run(listing())
    os.close(out_write)
    fds = set(os.read(out_read, 4096).split())
    assert {b"0", b"1", b"2", b"3"} <= fds
    for fd in (read_end, write_end, out_read):
        os.close(fd)


def test_a_pidfd_says_whether_its_process_has_ended() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        pidfd = os.pidfd_open(child.pid)
        assert not process.has_ended(pidfd)
        child.kill()
        asyncio.run(process.pidfd_ready(pidfd))
        assert process.has_ended(pidfd)
    os.close(pidfd)


def test_a_process_is_told_from_a_later_one() -> None:
    me = process.ProcessRef.of(os.getpid())
    assert me is not None
    assert me.is_alive()
    other = msgspec.structs.replace(me, start_time=me.start_time - 1)
    assert other.open_pidfd() is None
    assert not other.send_signal(signal.SIGKILL)


def test_no_reference_to_what_is_gone() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert process.ProcessRef.of(pid) is None, "a zombie is gone"
    os.waitpid(pid, 0)
    assert process.ProcessRef.of(pid) is None


def test_no_fd_is_left() -> None:
    asyncio.run(tool.run(["true"]))
    before = set(os.listdir("/proc/self/fd"))
    asyncio.run(tool.run(["true"]))
    with pytest.raises(CommandNotFound):
        asyncio.run(tool.run(["/nonexistent"]))
    assert set(os.listdir("/proc/self/fd")) == before
    assert Path("/proc/self/fd").is_dir()
