# SPDX-License-Identifier: Apache-2.0
"""Which sockets of a container are kept, made and given up; with real ones below a temporary folder."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import pytest

from agent.container.listening import Listening
from agent.definition.model import Container, Socket
from agent.errors import DefinitionRejected
from agent.systemd.fd_store import FdStore
from agent.systemd.notify import AgentNotify
from agent.systemd.passed_fds import PassedFd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def container(*sockets: Socket) -> Container:
    return Container(name="web", rootfs="/srv/web", socket=sockets)


def store(*passed: PassedFd) -> FdStore:
    return FdStore(AgentNotify({}), passed)


@pytest.fixture
def http(tmp_path: Path) -> Socket:
    return Socket(name="http", listen_stream=f"{tmp_path}/http")


@pytest.fixture
def admin(tmp_path: Path) -> Socket:
    return Socket(name="admin", listen_stream=f"{tmp_path}/admin")


@pytest.fixture
def web(http: Socket, admin: Socket) -> Iterator[Listening]:
    listening = Listening(container(http, admin), store())
    listening.open(listening.container)
    yield listening
    listening.close()


def connects(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError:
            return False
        return True


def test_in_the_order_of_the_file(web: Listening, http: Socket, admin: Socket) -> None:
    assert web.is_open
    assert web.names == ("http", "admin")
    assert connects(http.listen_stream)
    assert connects(admin.listen_stream)


def test_kept_whatever_the_order(web: Listening, http: Socket, admin: Socket) -> None:
    first = web.fds
    web.open(container(http, admin))
    assert web.fds == first
    web.open(container(admin, http))
    assert web.fds == first[::-1]
    assert web.names == ("admin", "http")


def test_a_changed_option_keeps_the_socket(web: Listening, http: Socket, admin: Socket) -> None:
    first = web.fds
    changed = Socket(name="other", listen_stream=http.listen_stream, backlog=1, on_demand=True)
    web.open(container(changed, admin))
    assert web.fds == first
    assert web.names == ("other", "admin")
    assert web.is_open


def test_what_the_definition_no_longer_names_is_given_up(web: Listening, http: Socket, admin: Socket) -> None:
    web.open(container(admin))
    assert not os.path.exists(http.listen_stream)
    assert connects(admin.listen_stream)


def test_one_that_cannot_be_had_leaves_the_others(web: Listening, http: Socket, admin: Socket, tmp_path: Path) -> None:
    first = web.fds
    (tmp_path / "file").write_text("in the way")
    wrong = Socket(name="wrong", listen_stream=f"{tmp_path}/file")
    with pytest.raises(DefinitionRejected, match="not a socket"):
        web.open(container(wrong, http, admin))
    assert web.fds == first
    assert not web.is_open
    (tmp_path / "file").unlink()
    web.open(container(wrong, http, admin))
    assert web.fds[1:] == first


def test_a_stored_one_is_taken_again_and_a_units_one_is_borrowed(http: Socket, admin: Socket) -> None:
    stored, passed = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    for sock, path in ((stored, http.listen_stream), (passed, admin.listen_stream)):
        sock.bind(path)
        sock.listen()
    inodes = [os.fstat(sock.fileno()).st_ino for sock in (stored, passed)]
    own = PassedFd("cleat/socket/1/web", stored.detach())
    listening = Listening(container(http, admin), store(own, PassedFd("admin.socket", os.dup(passed.fileno()))))
    listening.open(listening.container)
    assert [os.fstat(fd).st_ino for fd in listening.fds] == inodes
    listening.close()
    assert not os.path.exists(http.listen_stream)
    # It is the unit's: its node stays, and it listens on.
    assert connects(admin.listen_stream)
    passed.close()


def test_blocking_again(web: Listening) -> None:
    for fd in web.fds:
        os.set_blocking(fd, False)
    web.make_blocking()
    assert all(os.get_blocking(fd) for fd in web.fds)


def test_a_connection_triggers_once(http: Socket, admin: Socket) -> None:
    async def run() -> None:
        wanted = Socket(name="http", listen_stream=http.listen_stream, on_demand=True)
        listening = Listening(container(wanted, admin), store())
        listening.open(listening.container)
        triggered: list[int] = []
        came = asyncio.Event()

        def on_trigger() -> None:
            triggered.append(1)
            came.set()

        listening.arm(on_trigger)
        connects(admin.listen_stream)
        connects(http.listen_stream)
        connects(http.listen_stream)
        async with asyncio.timeout(5):
            await came.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        assert triggered == [1]
        assert not listening.is_armed
        listening.close()

    asyncio.run(run())


def test_opening_again_disarms(http: Socket) -> None:
    async def run() -> None:
        wanted = Socket(listen_stream=http.listen_stream, on_demand=True)
        listening = Listening(container(wanted), store())
        listening.open(listening.container)
        listening.arm(lambda: None)
        listening.open(listening.container)
        assert not listening.is_armed
        listening.close()

    asyncio.run(run())


def test_trigger_limit(http: Socket) -> None:
    limits = Socket(listen_stream=http.listen_stream, on_demand=True, trigger_limit_burst=3)
    listening = Listening(container(limits), store())
    assert [listening.trigger_limit_hit() for _ in range(4)] == [False, False, False, True]
    unlimited = Socket(listen_stream=http.listen_stream, on_demand=True, trigger_limit_burst=0)
    listening = Listening(container(unlimited), store())
    assert not any(listening.trigger_limit_hit() for _ in range(100))
