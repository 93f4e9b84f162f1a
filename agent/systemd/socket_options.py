# SPDX-License-Identifier: Apache-2.0
"""The options of systemd.socket(5) as setsockopt(2) calls; which ones a definition asks for is pure."""

from __future__ import annotations

import math
import socket
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from agent.definition.model import Socket

# linux/socket.h, in.h, in6.h: those that Python does not name
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_IP_FREEBIND, _IP_TRANSPARENT = 15, 19
_IPV6_FREEBIND, _IPV6_TRANSPARENT = 78, 75
_IP_FAMILIES = {socket.AF_INET, socket.AF_INET6}


class Option(msgspec.Struct, frozen=True):
    """One call. `key` is the definition's; `fallback` is tried when the privilege for `name` is missing."""

    key: str
    level: int
    name: int
    value: int | bytes
    fallback: int = 0


def before_bind(wanted: Socket, family: int, kind: int) -> list[Option]:
    """What must be set before bind(2)."""
    found: list[Option] = []
    if family in _IP_FAMILIES and kind == socket.SOCK_STREAM:
        # Not for datagrams, where two sockets could then be bound to one address and one would get nothing.
        found.append(Option("", socket.SOL_SOCKET, socket.SO_REUSEADDR, 1))
    if family == socket.AF_INET6 and wanted.bind_ipv6_only != "default":
        only = int(wanted.bind_ipv6_only == "ipv6-only")
        found.append(Option("bind_ipv6_only", socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only))
    if wanted.bind_to_device:
        device = wanted.bind_to_device.encode() + b"\0"
        found.append(Option("bind_to_device", socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device))
    if wanted.reuse_port:
        found.append(Option("reuse_port", socket.SOL_SOCKET, socket.SO_REUSEPORT, 1))
    if wanted.free_bind:
        found.append(_ip("free_bind", family, _IP_FREEBIND, _IPV6_FREEBIND, 1))
    if wanted.transparent:
        found.append(_ip("transparent", family, _IP_TRANSPARENT, _IPV6_TRANSPARENT, 1))
    return found


def after_bind(wanted: Socket, family: int, kind: int) -> list[Option]:
    """What may be set, and set again, on a bound socket."""
    is_tcp = family in _IP_FAMILIES and kind == socket.SOCK_STREAM
    found = _buffers(wanted)
    if is_tcp or wanted.keep_alive:
        found.append(Option("keep_alive", socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(wanted.keep_alive)))
    if is_tcp or wanted.no_delay:
        found.append(Option("no_delay", socket.IPPROTO_TCP, socket.TCP_NODELAY, int(wanted.no_delay)))
    if is_tcp or wanted.defer_accept_sec:
        seconds = math.ceil(wanted.defer_accept_sec)
        found.append(Option("defer_accept_sec", socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, seconds))
    if wanted.mark:
        found.append(Option("mark", socket.SOL_SOCKET, socket.SO_MARK, wanted.mark))
    if wanted.pass_credentials or family == socket.AF_UNIX:
        value = int(wanted.pass_credentials)
        found.append(Option("pass_credentials", socket.SOL_SOCKET, socket.SO_PASSCRED, value))
    return found + _traffic(wanted, family)


def _buffers(wanted: Socket) -> list[Option]:
    found: list[Option] = []
    if wanted.receive_buffer:
        value = wanted.receive_buffer
        found.append(Option("receive_buffer", socket.SOL_SOCKET, _SO_RCVBUFFORCE, value, socket.SO_RCVBUF))
    if wanted.send_buffer:
        value = wanted.send_buffer
        found.append(Option("send_buffer", socket.SOL_SOCKET, _SO_SNDBUFFORCE, value, socket.SO_SNDBUF))
    return found


def _traffic(wanted: Socket, family: int) -> list[Option]:
    found: list[Option] = []
    if wanted.ip_tos:
        found.append(_ip("ip_tos", family, socket.IP_TOS, socket.IPV6_TCLASS, wanted.ip_tos))
    if wanted.ip_ttl:
        found.append(_ip("ip_ttl", family, socket.IP_TTL, socket.IPV6_UNICAST_HOPS, wanted.ip_ttl))
    if wanted.priority:
        # The last one: IP_TOS sets a priority of its own (ip(7)).
        found.append(Option("priority", socket.SOL_SOCKET, socket.SO_PRIORITY, wanted.priority))
    return found


def _ip(key: str, family: int, four: int, six: int, value: int) -> Option:
    if family == socket.AF_INET6:
        return Option(key, socket.IPPROTO_IPV6, six, value)
    return Option(key, socket.IPPROTO_IP, four, value)


class OptionFailed(OSError):
    """An option that the kernel refused; `key` is the definition's key."""

    def __init__(self, key: str, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror)
        self.key = key


def apply(sock: socket.socket, options: list[Option]) -> None:
    """Set them. Raises OptionFailed."""
    for option in options:
        try:
            _set(sock, option)
        except OSError as e:
            raise OptionFailed(option.key, e) from e


def _set(sock: socket.socket, option: Option) -> None:
    try:
        sock.setsockopt(option.level, option.name, option.value)
    except PermissionError:
        if not option.fallback:
            raise
        sock.setsockopt(option.level, option.fallback, option.value)
