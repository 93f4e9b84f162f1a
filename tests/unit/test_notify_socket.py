# SPDX-License-Identifier: Apache-2.0
"""The notify socket of a container, with real senders."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from agent.systemd import journal
from agent.systemd.notify_socket import NotifySocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agent.systemd.notification import Notification


class Receiver:
    """The agent's side: what came, and when something came."""

    def __init__(self, folder: Path, *, accepts: Callable[[int], bool] = lambda _: True, stored_fd: int = -1) -> None:
        self.messages: list[Notification] = []
        self.fds: list[int] = []
        self.arrived = asyncio.Event()
        self.socket = NotifySocket(
            str(folder), container="web", accepts=accepts, on_notification=self._take, stored_fd=stored_fd
        )

    def _take(self, message: Notification, fds: tuple[int, ...]) -> None:
        self.messages.append(message)
        self.fds += fds
        self.arrived.set()

    async def next(self) -> Notification:
        async with asyncio.timeout(5):
            await self.arrived.wait()
        self.arrived.clear()
        return self.messages[-1]


@contextmanager
def sender_to(receiver: Receiver) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(receiver.socket.path)
        yield sock


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket that receives what would go to the journal."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "journal"))
        sock.settimeout(0)
        target = journal.Journal(str(tmp_path / "journal"))
        monkeypatch.setattr(journal, "_journal", target)
        yield sock
        target.close()


def test_mode_and_message(tmp_path: Path) -> None:
    async def run() -> None:
        receiver = Receiver(tmp_path / "n")
        assert (tmp_path / "n").stat().st_mode & 0o7777 == 0o755
        assert (tmp_path / "n/notify.sock").stat().st_mode & 0o7777 == 0o666
        assert [p.name for p in (tmp_path / "n").iterdir()] == ["notify.sock"]
        with sender_to(receiver) as sock:
            sock.send(b"READY=1\nSTATUS=up")
            message = await receiver.next()
        assert message.ready
        assert message.status == "up"
        receiver.socket.close()

    asyncio.run(run())


def test_a_path_longer_than_an_address_may_be(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 60) / ("y" * 60)
    folder.parent.mkdir()

    async def run() -> None:
        receiver = Receiver(folder)
        assert (folder / "notify.sock").is_socket()
        receiver.socket.close()

    asyncio.run(run())


def test_strangers_are_refused(tmp_path: Path, entries: socket.socket) -> None:
    async def run() -> None:
        asked = asyncio.Event()

        def accepts(pid: int) -> bool:
            assert pid == os.getpid()
            asked.set()
            return False

        receiver = Receiver(tmp_path / "n", accepts=accepts)
        with sender_to(receiver) as sock:
            sock.send(b"READY=1")
            await asked.wait()
        receiver.socket.close()
        assert receiver.messages == []

    asyncio.run(run())
    entry = entries.recv(9999)
    assert b"CLEAT_EVENT=notify-refused\n" in entry
    assert b"CLEAT_CONTAINER=web\n" in entry


def test_refusals_are_told_once(tmp_path: Path, entries: socket.socket) -> None:
    async def run() -> None:
        receiver = Receiver(tmp_path / "n")
        with sender_to(receiver) as sock:
            for _ in range(10):
                sock.send(b"A\0B")
            sock.send(b"READY=1")
            await receiver.next()
        receiver.socket.close()
        assert len(receiver.messages) == 1

    asyncio.run(run())
    entries.recv(9999)
    with pytest.raises(BlockingIOError):
        entries.recv(9999)


@pytest.mark.usefixtures("entries")
def test_too_long_is_refused(tmp_path: Path) -> None:
    async def run() -> None:
        receiver = Receiver(tmp_path / "n")
        with sender_to(receiver) as sock:
            sock.send(b"READY=1\nSTATUS=" + b"x" * 5000)
            sock.send(b"STATUS=next")
            assert (await receiver.next()).status == "next"
        receiver.socket.close()
        assert len(receiver.messages) == 1

    asyncio.run(run())


def run_sender(path: str, code: str) -> int:
    """Send from a process that is gone afterwards; its pid."""
    code = f"import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect({path!r}); {code}"
    child = subprocess.Popen([sys.executable, "-c", code])
    assert child.wait(20) == 0
    return child.pid


@pytest.mark.usefixtures("entries")
def test_a_dead_sender_counts_only_when_tracked(tmp_path: Path) -> None:
    async def run() -> None:
        receiver = Receiver(tmp_path / "n", accepts=lambda pid: pid == os.getpid())
        run_sender(receiver.socket.path, "s.send(b'STATUS=untracked')")
        tracked = run_sender(receiver.socket.path, "s.send(b'STOPPING=1')")
        receiver.socket.tracked.add(tracked)
        assert (await receiver.next()).stopping
        receiver.socket.close()
        assert len(receiver.messages) == 1

    asyncio.run(run())


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.usefixtures("entries")
def test_fds_are_closed_unless_they_are_to_be_stored(tmp_path: Path) -> None:
    async def run() -> None:
        receiver = Receiver(tmp_path / "n")
        with sender_to(receiver) as sock:
            read, write = os.pipe()
            # The first refusal opens the way to the journal.
            sock.send(b"bad\0bad")
            sock.send(b"STATUS=")
            await receiver.next()
            before = open_fds()
            socket.send_fds(sock, [b"READY=1"], [read, write])
            await receiver.next()
            assert open_fds() == before
            socket.send_fds(sock, [b"STATUS=bad\0bad"], [read])
            socket.send_fds(sock, [b"FDSTORE=1\nFDNAME=x"], [read])
            message = await receiver.next()
            assert message.fd_name == "x"
            (fd,) = receiver.fds
            assert not os.get_inheritable(fd)
            assert os.fstat(fd).st_ino == os.fstat(read).st_ino
            os.close(fd)
            assert open_fds() == before
            os.close(read)
            os.close(write)
        receiver.socket.close()

    asyncio.run(run())


def test_barrier_is_answered_after_what_came_before(tmp_path: Path) -> None:
    async def run() -> None:
        receiver = Receiver(tmp_path / "n")
        loop = asyncio.get_running_loop()
        with sender_to(receiver) as sock:
            read, write = os.pipe()
            sock.send(b"READY=1")
            socket.send_fds(sock, [b"BARRIER=1"], [write])
            os.close(write)
            closed = asyncio.Event()
            loop.add_reader(read, closed.set)
            async with asyncio.timeout(5):
                await closed.wait()
            assert os.read(read, 1) == b""
            loop.remove_reader(read)
            os.close(read)
        receiver.socket.close()
        assert [m.ready for m in receiver.messages] == [True]

    asyncio.run(run())


def test_a_flood_leaves_time_for_others(tmp_path: Path) -> None:
    async def run() -> None:
        receiver = Receiver(tmp_path / "n")
        with sender_to(receiver) as sock:
            sock.settimeout(0)
            sent = turns = 0
            async with asyncio.timeout(10):
                while sent < 700:
                    try:
                        while True:
                            sock.send(b"WATCHDOG=1")
                            sent += 1
                    except BlockingIOError:
                        pass
                    turns += 1
                    before = len(receiver.messages)
                    await asyncio.sleep(0)
                    assert len(receiver.messages) - before <= 16
                    if len(receiver.messages) >= 500:
                        break
            assert turns > 10
            # Now reading rests, and goes on in its time.
            at_rest = len(receiver.messages)
            await asyncio.sleep(0)
            assert len(receiver.messages) - at_rest <= 16
        receiver.socket.close()

    asyncio.run(run())


def test_binding_anew_replaces_the_node_that_the_container_sees(tmp_path: Path) -> None:
    async def run() -> None:
        first = Receiver(tmp_path / "n")
        first.socket.close()
        folder = os.open(tmp_path / "n", os.O_PATH)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            with pytest.raises(ConnectionRefusedError):
                sock.connect(f"/proc/self/fd/{folder}/notify.sock")
            second = Receiver(tmp_path / "n")
            sock.connect(f"/proc/self/fd/{folder}/notify.sock")
            sock.send(b"READY=1")
            assert (await second.next()).ready
        os.close(folder)
        second.socket.close()

    asyncio.run(run())


def test_a_stored_fd_keeps_what_was_sent_meanwhile(tmp_path: Path) -> None:
    async def run() -> None:
        first = Receiver(tmp_path / "n")
        stored = os.dup(first.socket.fileno())
        with sender_to(first) as sock:
            first.socket.close()
            sock.send(b"STATUS=while away")
            second = Receiver(tmp_path / "n", stored_fd=stored)
            assert second.socket.fileno() == stored
            assert (await second.next()).status == "while away"
        second.socket.close()

    asyncio.run(run())


def test_a_stored_fd_of_another_folder_is_not_taken(tmp_path: Path) -> None:
    async def run() -> None:
        other = Receiver(tmp_path / "other")
        mine = Receiver(tmp_path / "n")
        mine.socket.close()
        stored = os.dup(other.socket.fileno())
        receiver = Receiver(tmp_path / "n", stored_fd=stored)
        with sender_to(receiver) as sock:
            sock.send(b"READY=1")
            assert (await receiver.next()).ready
        receiver.socket.close()
        other.socket.close()
        assert other.messages == []

    asyncio.run(run())
