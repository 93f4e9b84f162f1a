# SPDX-License-Identifier: Apache-2.0
"""Fds that come from the service manager's store and go there: of the agent's sockets, and of payloads."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import pytest

from agent.container.kept import KeptFd, KeptFds
from agent.systemd.fd_store import FdStore, own_name
from agent.systemd.notification import Notification
from agent.systemd.notify import AgentNotify
from agent.systemd.passed_fds import PassedFd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Manager:
    """The receiving end of the agent's notifications: a real socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(0)
        self.notify = AgentNotify({"NOTIFY_SOCKET": str(path)})

    def heard(self) -> list[str]:
        """FDSTORE and FDSTOREREMOVE with their names, in order."""
        found: list[str] = []
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.socket, 4096, 1)
            except BlockingIOError:
                return found
            for fd in fds:
                os.close(fd)
            verb, name = data.decode().split("\n")[:2]
            found.append(f"{verb.removesuffix('=1')} {name.removeprefix('FDNAME=')}")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.notify.close()
    manager.socket.close()


def store_message(name: str = "", *, poll: bool = True, remove: bool = False) -> Notification:
    return Notification(fd_store=not remove, fd_store_remove=remove, fd_name=name or None, fd_poll=poll)


def memory(text: str = "") -> int:
    fd = os.memfd_create("test")
    os.write(fd, text.encode())
    return fd


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_names_of_ours_are_no_units() -> None:
    assert own_name("socket", 7, "web") == "cleat/socket/7/web"


def test_ours_is_taken_once_and_the_rest_is_dropped(manager: Manager) -> None:
    first, (second, other_end) = memory(), os.pipe()
    store = FdStore(manager.notify, [PassedFd("cleat/a/1/web", first), PassedFd("cleat/a/2/web", second)])
    assert store.take("cleat/a/1/web") == first
    assert store.take("cleat/a/1/web") == -1
    store.close_rest()
    assert is_open(first)
    with pytest.raises(BrokenPipeError):
        os.write(other_end, b"x")
    os.close(other_end)
    assert manager.heard() == ["FDSTOREREMOVE cleat/a/2/web"]
    os.close(first)


def test_fitting_means_kind_and_container_too(manager: Manager) -> None:
    names = ("cleat/socket/1/web", "cleat/socket/1/other", "cleat/stored/1/web")
    fds = {name: memory() for name in names}
    store = FdStore(manager.notify, [PassedFd(name, fd) for name, fd in fds.items()])
    assert store.take_fitting("socket", "web", lambda _: False) == ("", -1)
    assert store.take_fitting("socket", "web", lambda _: True) == (names[0], fds[names[0]])
    assert store.take_fitting("socket", "web", lambda _: True) == ("", -1)
    for fd in fds.values():
        os.close(fd)


def test_all_of_a_kind(manager: Manager) -> None:
    names = ("cleat/wait/7/web", "cleat/wait/8/a@b", "cleat/waits/7/web")
    fds = {name: memory() for name in names}
    store = FdStore(manager.notify, [PassedFd(name, fd) for name, fd in fds.items()])
    assert store.take_all("wait") == [("web", fds[names[0]]), ("a@b", fds[names[1]])]
    assert store.take_all("wait") == []
    store.close_rest()
    assert manager.heard() == [f"FDSTOREREMOVE {names[2]}"]
    for name in names[:2]:
        os.close(fds[name])


def test_sockets_of_units_are_lent_again_and_again(manager: Manager) -> None:
    one, two = memory(), memory()
    store = FdStore(manager.notify, [PassedFd("web.socket", one), PassedFd("socket-x.socket", two)])
    for _ in range(2):
        copy = store.borrow(["socket-x.socket"], lambda _: True)
        assert os.path.samestat(os.fstat(copy), os.fstat(two))
        os.close(copy)
    rest = store.borrow_rest()
    assert [item.name for item in rest] == ["web.socket"]
    assert store.borrow_rest() == []
    store.close_rest()
    assert is_open(one)
    assert is_open(two)
    assert manager.heard() == []
    for fd in (one, two, *(item.fd for item in rest)):
        os.close(fd)


def test_kept_in_order_up_to_the_limit(manager: Manager) -> None:
    kept = KeptFds("web", FdStore(manager.notify))

    async def run() -> None:
        assert kept.hear(store_message("a", poll=False), (memory("1"), memory("2")), 3) == 0
        third, fourth = memory("3"), memory("4")
        assert kept.hear(store_message(poll=False), (third, fourth), 3) == 1
        assert not is_open(fourth)
        assert [each.name for each in kept.all] == ["a", "a", "stored"]
        assert [os.pread(fd, 9, 0) for fd in kept.fds] == [b"1", b"2", b"3"]
        kept.hear(store_message("a", remove=True), (), 3)
        assert kept.fds == (third,)
        kept.release()
        assert not is_open(third)

    asyncio.run(run())
    assert manager.heard() == [
        "FDSTORE cleat/stored/0/web",
        "FDSTORE cleat/stored/1/web",
        "FDSTORE cleat/stored/2/web",
        "FDSTOREREMOVE cleat/stored/0/web",
        "FDSTOREREMOVE cleat/stored/1/web",
    ]


def test_the_same_is_kept_once_but_likenesses_are_not_the_same(manager: Manager) -> None:
    kept = KeptFds("web", FdStore(manager.notify))

    async def run() -> None:
        ours, theirs = socket.socketpair()
        kept.hear(store_message("a", poll=False), (os.dup(ours.fileno()), os.dup(ours.fileno())), 9)
        assert len(kept.fds) == 1
        # Both have the inode that all event fds share.
        kept.hear(store_message("b", poll=False), (os.eventfd(0), os.eventfd(0)), 9)
        assert len([*kept.fds]) == 3
        kept.release()
        ours.close()
        theirs.close()

    asyncio.run(run())


def test_a_hang_up_drops_what_is_watched(manager: Manager) -> None:
    changed = asyncio.Event()
    kept = KeptFds("web", FdStore(manager.notify), changed.set)

    async def run() -> None:
        pairs = [os.pipe(), os.pipe()]
        kept.hear(store_message("watched"), (pairs[0][0], memory()), 9)
        kept.hear(store_message("not", poll=False), (pairs[1][0],), 9)
        for _, theirs in pairs:
            os.close(theirs)
        changed.clear()
        async with asyncio.timeout(5):
            await changed.wait()
        assert [each.name for each in kept.all] == ["watched", "not"]
        assert not is_open(pairs[0][0])
        kept.release()

    asyncio.run(run())


def test_taken_back_by_what_the_record_says(manager: Manager) -> None:
    fd = memory("text")
    store = FdStore(manager.notify, [PassedFd("cleat/stored/5/web", fd)])
    kept = KeptFds("web", store)

    async def run() -> None:
        kept.take_back([KeptFd(5, "a", poll=False), KeptFd(6, "lost", poll=False)])
        assert kept.all == (KeptFd(5, "a", poll=False),)
        kept.hear(store_message("b", poll=False), (memory(),), 9)
        assert [each.key for each in kept.all] == [5, 6]
        kept.release()

    asyncio.run(run())
