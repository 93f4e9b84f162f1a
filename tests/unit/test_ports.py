# SPDX-License-Identifier: Apache-2.0
"""Published ports are held while a container runs."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

from agent.container.ports import PORTS_MAX, Port, ReservedPorts, wanted
from agent.definition.addresses import Protocol
from agent.definition.model import Container, Network
from agent.errors import RuntimeFailed, Unsupported
from agent.systemd.fd_store import FdStore


class Store:
    """What a service manager keeps, over agents."""

    def __init__(self) -> None:
        self.fds: dict[str, int] = {}

    def store(self, name: str, fd: int) -> None:
        self.forget(name)
        self.fds[name] = os.dup(fd)

    def forget(self, name: str) -> None:
        if name in self.fds:
            os.close(self.fds.pop(name))

    def take(self, name: str) -> int:
        return os.dup(self.fds[name]) if name in self.fds else -1


@pytest.fixture
def store() -> Iterator[Store]:
    found = Store()
    yield found
    for name in list(found.fds):
        found.forget(name)


def reserved(store: Store) -> ReservedPorts:
    return ReservedPorts("web", cast("FdStore", store))


def container(*publish: str, mode: str = "private") -> Container:
    return Container(name="web", rootfs="/srv", network=Network(mode=mode, publish=publish))


def is_taken(number: int, kind: Any = socket.SOCK_STREAM, family: Any = socket.AF_INET) -> bool:
    with socket.socket(family, kind) as probe:
        # As servers do; a port that is only bound is still not to be had.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("" if family == socket.AF_INET else "::", number))
        except OSError:
            return True
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_both_families_are_held_and_let_go(store: Store) -> None:
    number, ports = free_port(), reserved(store)
    ports.reserve(container(f"{number}:80"))
    assert is_taken(number)
    assert is_taken(number, family=socket.AF_INET6)
    assert not is_taken(number, socket.SOCK_DGRAM)
    ports.release()
    assert not is_taken(number)
    assert not store.fds


def test_udp_and_one_address(store: Store) -> None:
    number, ports = free_port(), reserved(store)
    ports.reserve(container(f"127.0.0.1:{number}:53/udp"))
    assert is_taken(number, socket.SOCK_DGRAM)
    assert len(store.fds) == 1
    ports.release()


def test_a_port_in_use_is_named_and_nothing_stays_held(store: Store) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken, number, ports = other.getsockname()[1], free_port(), reserved(store)
        with pytest.raises(RuntimeFailed, match=rf"port {taken}/tcp cannot be reserved: Address already in use"):
            ports.reserve(container(f"{number}:80", f"{taken}:81"))
    assert not is_taken(number)
    assert not store.fds


def test_a_free_port_is_found_and_told(store: Store) -> None:
    ports = reserved(store)
    ports.reserve(container("80", "90-91"))
    numbers = [(m.container_port, m.count) for m in ports.mappings]
    assert numbers == [(80, 1), (90, 1), (91, 1)]
    assert all(is_taken(m.host_port) for m in ports.mappings)
    ports.release()


def test_the_next_agent_takes_them_back(store: Store) -> None:
    number, ports = free_port(), reserved(store)
    ports.reserve(container(f"{number}:80", "90"))
    before = ports.mappings
    ports.leave()
    assert is_taken(number)
    again = reserved(store)
    again.adopt(container(f"{number}:80", "90"))
    assert again.mappings == before
    assert len(store.fds) == 4
    again.release()
    assert not is_taken(number)
    assert not store.fds


def test_what_cannot_be_held() -> None:
    with pytest.raises(Unsupported, match="sctp ports cannot be reserved"):
        wanted(container("132:132/sctp"))
    with pytest.raises(Unsupported, match=f"more than {PORTS_MAX}"):
        wanted(container(f"20000-{20000 + PORTS_MAX}:1-{PORTS_MAX + 1}"))
    assert wanted(container("80:80", mode="host")) == []


def test_how_a_port_is_named() -> None:
    assert str(Port(Protocol.UDP, "::1", 53)) == "[::1]:53/udp"
    assert str(Port(Protocol.TCP, "", 80)) == "80/tcp"
