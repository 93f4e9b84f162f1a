# SPDX-License-Identifier: Apache-2.0
"""A [[socket]] table read: what kind of socket it asks for, and where; pure."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import msgspec

from agent.definition.addresses import Family, ListenAddress, parse_fifo, parse_listen_address
from agent.definition.values import InvalidValue
from agent.errors import DefinitionRejected
from agent.systemd import accept_filter

if TYPE_CHECKING:
    from agent.definition.model import Socket

_LISTEN_KEYS = {
    "listen_stream": socket.SOCK_STREAM,
    "listen_datagram": socket.SOCK_DGRAM,
    "listen_sequential_packet": socket.SOCK_SEQPACKET,
    "listen_fifo": 0,
}
_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6, Family.UNIX: socket.AF_UNIX}
_HINTS = {
    errno.EADDRINUSE: "stop what holds it, or choose another address",
    errno.EADDRNOTAVAIL: "no interface has this address; set free_bind = true to listen before one has it",
    errno.EACCES: "the agent may not use this address",
    errno.EPERM: "the agent needs CAP_NET_ADMIN for this",
    errno.ENODEV: "there is no such network interface",
    errno.EAFNOSUPPORT: "this kernel does not have that kind of address",
}


def hint_of(number: int | None) -> str:
    """What to do about an errno number of bind(2) and friends."""
    return _HINTS.get(number or 0, "")


class Wanted(msgspec.Struct, frozen=True):
    """A [[socket]] table read: which key, what kind of socket (0 = fifo), where; and the table's place for errors."""

    options: Socket
    key: str
    kind: int
    address: ListenAddress
    networks: tuple[accept_filter.Network, ...]
    index: int
    container: str
    file: str

    @property
    def is_fifo(self) -> bool:
        return self.kind == 0

    @property
    def family(self) -> int:
        return socket.AF_VSOCK if self.address.family is Family.VSOCK else _FAMILIES[self.address.family]

    @property
    def path(self) -> str:
        """The node in the file system, "" when there is none."""
        return "" if self.address.is_abstract else self.address.path

    @property
    def listens(self) -> bool:
        return self.kind in {socket.SOCK_STREAM, socket.SOCK_SEQPACKET}

    def rejected(self, key: str, why: str, hint: str = "") -> DefinitionRejected:
        what = f"cannot make the fifo {self.address}" if self.is_fifo else f"cannot listen on {self.address}"
        return _rejected(self.index, key or self.key, what, why, hint, self.container, self.file)


def _rejected(index: int, key: str, what: str, why: str, hint: str, container: str, file: str) -> DefinitionRejected:
    place = f"socket[{index}].{key}" if key else f"socket[{index}]"
    return DefinitionRejected(what, container=container, file=file, key=place, why=why, hint=hint)


def wanted(options: Socket, *, index: int = 0, container: str = "", file: str = "") -> Wanted:
    """Read a table; `index` counts from 0 in the definition. Raises DefinitionRejected. Touches nothing."""

    def fail(key: str, what: str, why: str = "", hint: str = "") -> DefinitionRejected:
        return _rejected(index, key, what, why, hint, container, file)

    given = [key for key in _LISTEN_KEYS if getattr(options, key)]
    if len(given) != 1:
        raise fail("", "exactly one listen_ key is needed", hint=f"one of {', '.join(_LISTEN_KEYS)}")
    key = given[0]
    kind = _LISTEN_KEYS[key]
    try:
        address = (parse_listen_address if kind else parse_fifo)(getattr(options, key))
    except InvalidValue as e:
        raise fail(key, e.reason, hint=e.hint) from e
    if kind == socket.SOCK_SEQPACKET and address.family is not Family.UNIX:
        raise fail(key, f"{address} cannot be sequential", hint="only unix sockets can; use listen_stream")
    networks: tuple[accept_filter.Network, ...] = ()
    if options.accept_from:
        if address.family not in {Family.IPV4, Family.IPV6}:
            raise fail("accept_from", "is for IP sockets", hint="a unix socket has socket_mode and socket_group")
        try:
            networks = accept_filter.parse_networks(options.accept_from)
        except InvalidValue as e:
            raise fail("accept_from", e.reason, hint=e.hint) from e
    return Wanted(options, key, kind, address, networks, index, container, file)
