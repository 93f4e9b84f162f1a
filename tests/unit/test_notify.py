# SPDX-License-Identifier: Apache-2.0
"""What the agent says to its service manager, on real datagram sockets."""

from __future__ import annotations

import array
import asyncio
import os
import socket
import struct
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from agent.errors import DeadlineExceeded, InvalidArgument
from agent.systemd.datagram import Datagrams
from agent.systemd.notify import AgentNotify
from agent.systemd.notify_as import send_as

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        yield sock


def text(manager: socket.socket) -> str:
    return manager.recv(8192).decode()


def agent(manager: socket.socket, **more: str) -> AgentNotify:
    return AgentNotify({"NOTIFY_SOCKET": manager.getsockname(), **more})


def test_takes_its_variables_out_of_the_environment() -> None:
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "5", "WATCHDOG_PID": "1", "FDSTORE": "7", "HOME": "/"}
    notify = AgentNotify(environment)
    assert environment == {"HOME": "/"}
    assert notify.watchdog_usec == 0


def test_is_silent_without_a_manager() -> None:
    notify = AgentNotify({})
    assert not notify.is_active
    assert not notify.ready()
    asyncio.run(notify.barrier())


def test_unknown_kind_of_address_is_no_manager() -> None:
    assert not AgentNotify({"NOTIFY_SOCKET": "vsock:2:1234"}).is_active
    assert not AgentNotify({"NOTIFY_SOCKET": "@"}).is_active


def test_messages(manager: socket.socket) -> None:
    notify = agent(manager)
    notify.ready("two\nlines")
    assert text(manager) == "READY=1\nSTATUS=two lines"
    notify.status("x\0y\nMAINPID=1")
    assert text(manager) == "STATUS=x\\x00y MAINPID=1"
    notify.stopping()
    assert text(manager) == "STOPPING=1"
    notify.extend_timeout(3000000)
    assert text(manager) == "EXTEND_TIMEOUT_USEC=3000000"
    notify.errno(5, "bad disk")
    assert text(manager) == "ERRNO=5\nSTATUS=bad disk"
    notify.remove_fd("a")
    assert text(manager) == "FDSTOREREMOVE=1\nFDNAME=a"
    notify.close()


def test_reloading_has_the_time(manager: socket.socket) -> None:
    before = time.monotonic_ns() // 1000
    notify = agent(manager)
    notify.reloading()
    first, second = text(manager).split("\n")
    assert first == "RELOADING=1"
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    notify.close()


def test_long_status_fits_one_message(manager: socket.socket) -> None:
    notify = agent(manager)
    assert notify.status("ü\U0001f6a2" * 5000)
    assert len(manager.recv(8192)) <= 4096
    notify.close()


def test_watchdog_is_for_this_process_only(manager: socket.socket) -> None:
    ours = agent(manager, WATCHDOG_USEC="2000000", WATCHDOG_PID=str(os.getpid()))
    assert ours.watchdog_usec == 2000000
    assert ours.watchdog()
    assert text(manager) == "WATCHDOG=1"
    assert agent(manager, WATCHDOG_USEC="2000000").watchdog_usec == 2000000
    assert agent(manager, WATCHDOG_USEC="2000000", WATCHDOG_PID="1").watchdog_usec == 0
    assert agent(manager, WATCHDOG_USEC="-5x").watchdog_usec == 0
    ours.close()


def test_abstract_address() -> None:
    name = f"cleat-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name)
        notify = AgentNotify({"NOTIFY_SOCKET": "@" + name})
        assert notify.ready()
        assert sock.recv(100) == b"READY=1"
        notify.close()


def take_fds(manager: socket.socket) -> tuple[bytes, list[int]]:
    data, ancillary, _, _ = manager.recvmsg(4096, 1000)
    fds = array.array("i")
    for _level, kind, value in ancillary:
        if kind == socket.SCM_RIGHTS:
            fds.frombytes(value)
    return data, list(fds)


def test_stores_a_copy_of_an_fd(manager: socket.socket) -> None:
    notify = agent(manager)
    read, write = os.pipe()
    assert notify.store_fd("web", read, poll=False)
    data, received = take_fds(manager)
    assert data == b"FDSTORE=1\nFDNAME=web\nFDPOLL=0"
    assert os.path.sameopenfile(received[0], read)
    for fd in (read, write, *received):
        os.close(fd)
    notify.close()


def test_bad_names_for_stored_fds(manager: socket.socket) -> None:
    notify = agent(manager)
    for name in ("", "a:b", "a\nb", "x" * 256):
        with pytest.raises(InvalidArgument):
            notify.store_fd(name, 0)
    notify.close()


def test_barrier_waits_for_the_manager(manager: socket.socket) -> None:
    notify = agent(manager)
    fds: list[int] = []

    async def wait() -> None:
        loop = asyncio.get_running_loop()
        manager.settimeout(0)
        arrived = asyncio.Event()
        loop.add_reader(manager, arrived.set)
        waiting = asyncio.ensure_future(notify.barrier(5))
        await arrived.wait()
        loop.remove_reader(manager)
        data, received = take_fds(manager)
        assert data == b"BARRIER=1"
        fds.extend(received)
        assert not waiting.done()
        os.close(fds.pop())
        await waiting

    asyncio.run(wait())
    notify.close()


def test_barrier_has_a_deadline(manager: socket.socket) -> None:
    notify = agent(manager)
    with pytest.raises(DeadlineExceeded):
        asyncio.run(notify.barrier(0.01))
    notify.close()


def send_many(line: Datagrams) -> None:
    for _ in range(100_000):
        line.send(b"x", patience=0.01)


def test_a_full_manager_does_not_block(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        line = Datagrams(str(tmp_path / "deaf"))
        with pytest.raises(BlockingIOError):
            send_many(line)
        line.close()


def test_a_replaced_receiver_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "s"
    line = Datagrams(str(path))
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(str(path))
            line.send(b"hello")
            assert receiver.recv(10) == b"hello"
        path.unlink()
    with pytest.raises(FileNotFoundError):
        line.send(b"nobody")
    line.close()


def sender(manager: socket.socket) -> tuple[bytes, int]:
    data, ancillary, _, _ = manager.recvmsg(4096, 1000)
    credentials = next(value for _, kind, value in ancillary if kind == socket.SCM_CREDENTIALS)
    return data, struct.unpack("3i", credentials)[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN")
def test_speaks_as_another_process(manager: socket.socket) -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert send_as(child.pid, "READY=1\nSTATUS=x", address=manager.getsockname())
        assert sender(manager) == (b"READY=1\nSTATUS=x", child.pid)
    finally:
        child.kill()
        child.wait()
    assert not send_as(child.pid, "STATUS=x", address=manager.getsockname())


def test_nobody_there_is_no_error(tmp_path: Path) -> None:
    assert not send_as(os.getpid(), "READY=1", address=str(tmp_path / "none"))
