# SPDX-License-Identifier: Apache-2.0
"""Holding the host's ports that a container publishes, so that no other program takes them while it runs.

Traffic to a published port is redirected before any socket sees it, so nothing would keep a program from binding the
port and wondering why nobody comes. A socket that is bound and does nothing else is enough (bind(2), EADDRINUSE), for
IPv4 and IPv6 each. They belong to the agent, with copies in the service manager's store for the next agent.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import suppress

import msgspec

from agent.definition.addresses import PortMapping, Protocol, parse_publish
from agent.definition.model import Container
from agent.errors import CleatError, RuntimeFailed, Unsupported
from agent.systemd.fd_store import FdStore, own_name

_KIND = "port"
_ANY_TRIES = 16
PORTS_MAX = 512
"""Of one container; each needs one or two sockets."""

_NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
# linux/in.h and linux/in6.h: IP_FREEBIND, IPV6_FREEBIND
_FREEBIND = {socket.AF_INET: (socket.IPPROTO_IP, 15), socket.AF_INET6: (socket.IPPROTO_IPV6, 78)}
_TYPES = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}


class Port(msgspec.Struct, frozen=True):
    """One port to hold; `number` 0 = any free one. `address` "" = all, in both families."""

    protocol: Protocol
    address: str
    number: int
    key: str = ""

    @property
    def addresses(self) -> tuple[tuple[socket.AddressFamily, str], ...]:
        """Where to bind it."""
        if not self.address:
            return (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")
        return ((socket.AF_INET6 if ":" in self.address else socket.AF_INET, self.address),)

    def __str__(self) -> str:
        host = f"[{self.address}]:" if ":" in self.address else f"{self.address}:" if self.address else ""
        return f"{host}{self.number}/{self.protocol}"


def wanted(container: Container) -> list[tuple[PortMapping, list[Port]]]:
    """Each published mapping with the ports of the host that it takes; none where it shares the host's network.

    Raises Unsupported for what cannot be held.
    """
    if container.network.mode == "host":
        return []
    found = [
        (mapping, list(_ports(mapping, f"network.publish[{i}]")))
        for i, mapping in enumerate(map(parse_publish, container.network.publish))
    ]
    for mapping, ports in found:
        if mapping.protocol not in _TYPES:
            raise Unsupported(
                f"{mapping.protocol} ports cannot be reserved",
                container=container.name,
                key=ports[0].key,
                why="that would load the kernel's sctp module on the host",
                hint="set reserve_ports = false in cleat.toml",
            )
    if sum(len(ports) for _, ports in found) > PORTS_MAX:
        raise Unsupported(
            f"more than {PORTS_MAX} ports cannot be reserved",
            container=container.name,
            key="network.publish",
            hint="set reserve_ports = false in cleat.toml",
        )
    return found


def _ports(mapping: PortMapping, key: str) -> Iterator[Port]:
    for i in range(mapping.count):
        number = mapping.host_port + i if mapping.host_port else 0
        yield Port(mapping.protocol, mapping.host_ip, number, key)


def _bind(port: Port, family: socket.AddressFamily, address: str, number: int) -> socket.socket:
    sock = socket.socket(family, _TYPES[port.protocol] | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # An address may come later than the container.
        sock.setsockopt(*_FREEBIND[family], 1)
        sock.bind((address, number))
    except OSError:
        sock.close()
        raise
    return sock


def _hold(port: Port) -> list[socket.socket]:
    """The port in each of its families, with the same number. Raises OSError."""
    held: list[socket.socket] = []
    number = port.number
    try:
        for family, address in port.addresses:
            try:
                held.append(_bind(port, family, address, number))
            except OSError as e:
                if held and e.errno in _NO_IPV6:
                    continue
                raise
            number = held[0].getsockname()[1]
    except OSError:
        _close(held)
        raise
    return held


def _hold_any(port: Port) -> list[socket.socket]:
    """The same; a free number in one family may be taken in the other."""
    for _ in range(_ANY_TRIES - 1 if not port.number else 0):
        with suppress(OSError):
            return _hold(port)
    return _hold(port)


def _close(held: list[socket.socket]) -> None:
    for sock in held:
        sock.close()


class ReservedPorts:
    """Owns the sockets of one container."""

    def __init__(self, name: str, store: FdStore) -> None:
        self._name = name
        self._store = store
        self._held: list[socket.socket] = []
        self.mappings: tuple[PortMapping, ...] = ()
        """What is published, with the numbers that were found for host_port 0, one mapping per port there."""

    def reserve(self, container: Container) -> None:
        """Hold all published ports. Raises RuntimeFailed with the kernel's reason, Unsupported; then none is held."""
        self.release()
        mappings: list[PortMapping] = []
        try:
            for mapping, ports in wanted(container):
                mappings += self._reserve(mapping, ports)
        except CleatError:
            self._drop()
            raise
        self.mappings = tuple(mappings)
        for i, sock in enumerate(self._held):
            self._store.store(self._stored(i), sock.fileno())

    def _reserve(self, mapping: PortMapping, ports: list[Port]) -> list[PortMapping]:
        numbers = []
        for port in ports:
            try:
                held = _hold_any(port)
            except OSError as e:
                raise RuntimeFailed(
                    f"port {port} cannot be reserved",
                    container=self._name,
                    key=port.key,
                    why=e.strerror or str(e),
                    hint=f"ss -lnp sport = {port.number}",
                ) from e
            self._held += held
            numbers.append(held[0].getsockname()[1])
        if mapping.host_port:
            return [mapping]
        return [
            msgspec.structs.replace(mapping, container_port=mapping.container_port + i, host_port=number, count=1)
            for i, number in enumerate(numbers)
        ]

    def adopt(self, container: Container) -> None:
        """After an agent restart: take the sockets back; what is not there any more is bound anew where it can be."""
        taken = self._taken()
        mappings: list[PortMapping] = []
        with suppress(CleatError):
            for mapping, ports in wanted(container):
                if mapping.host_port:
                    mappings.append(mapping)
                    self._adopt(ports, taken)
                else:
                    mappings += self._adopt_any(mapping, taken)
        _close(list(taken.values()))
        self.mappings = tuple(mappings)
        for i, sock in enumerate(self._held):
            self._store.store(self._stored(i), sock.fileno())

    def _taken(self) -> dict[tuple[int, str, int], socket.socket]:
        """All that the former agent held, by kind, address and number; out of the store, to be stored again."""
        found: dict[tuple[int, str, int], socket.socket] = {}
        for i in range(2 * PORTS_MAX):
            fd = self._store.take(self._stored(i))
            if fd < 0:
                break
            sock = socket.socket(fileno=fd)
            address, number = sock.getsockname()[:2]
            found[sock.type, address, number] = sock
            self._store.forget(self._stored(i))
        return found

    def _adopt(self, ports: list[Port], taken: dict[tuple[int, str, int], socket.socket]) -> None:
        for port in ports:
            for family, address in port.addresses:
                sock = taken.pop((_TYPES[port.protocol], address, port.number), None)
                if sock is None:
                    with suppress(OSError):
                        sock = _bind(port, family, address, port.number)
                if sock is not None:
                    self._held.append(sock)

    def _adopt_any(
        self, mapping: PortMapping, taken: dict[tuple[int, str, int], socket.socket]
    ) -> Iterator[PortMapping]:
        """Numbers that were free when it started: what is left in the store, in its order."""
        kind = _TYPES[mapping.protocol]
        first = Port(mapping.protocol, mapping.host_ip, 0).addresses[0][1]
        numbers = [number for k, address, number in taken if k == kind and address == first][: mapping.count]
        for i, number in enumerate(numbers):
            self._adopt([Port(mapping.protocol, mapping.host_ip, number)], taken)
            yield msgspec.structs.replace(mapping, container_port=mapping.container_port + i, host_port=number, count=1)

    def release(self) -> None:
        """The container has ended: let go of its ports."""
        for i in range(len(self._held)):
            self._store.forget(self._stored(i))
        self._drop()

    def _drop(self) -> None:
        _close(self._held)
        self._held = []
        self.mappings = ()

    def leave(self) -> None:
        """The agent ends: close our copies, those in the store live on."""
        self._drop()

    def _stored(self, index: int) -> str:
        return own_name(_KIND, index, self._name)
