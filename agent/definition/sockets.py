# SPDX-License-Identifier: Apache-2.0
"""What must hold between the keys of [[socket]] tables; pure (systemd.socket(5))."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from agent.definition.addresses import Family, parse_listen_address
from agent.definition.model import Container, Socket
from agent.definition.parse import KeyPath, Problem

LISTEN_KEYS = ("listen_stream", "listen_datagram", "listen_sequential_packet", "listen_fifo")
_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
_TCP_ONLY = ("keep_alive", "no_delay", "defer_accept_sec")
_IP_ONLY = ("bind_ipv6_only", "free_bind", "transparent", "ip_tos", "ip_ttl", "reuse_port")


def is_volume_name(name: str) -> bool:
    return _VOLUME.fullmatch(name) is not None


def check_sockets(container: Container, raw: Mapping[str, Any]) -> Iterator[Problem]:
    yield from _idle(container)
    names: dict[str, int] = {}
    places: dict[tuple[str, str], int] = {}
    for i, socket in enumerate(container.socket):
        path = ("socket", i)
        given = [key for key in LISTEN_KEYS if getattr(socket, key)]
        if not given:
            yield Problem(
                path, "one of listen_stream, listen_datagram, listen_sequential_packet, listen_fifo is needed"
            )
            continue
        for extra in given[1:]:
            yield Problem((*path, extra), f"{given[0]} and {extra} are both given", "write a [[socket]] for each")
        if socket.name and socket.name in names:
            hint = "give each a name of its own"
            yield Problem((*path, "name"), f'"{socket.name}" is the name of socket[{names[socket.name]}] too', hint)
        names.setdefault(socket.name, i)
        place = (given[0], getattr(socket, given[0]))
        if place in places and not socket.reuse_port:
            yield Problem((*path, given[0]), f"socket[{places[place]}] listens there too", "remove one")
        places.setdefault(place, i)
        yield from _options(socket, given[0], path)


def _idle(container: Container) -> Iterator[Problem]:
    """All sockets of a container have to be idle before it is stopped, so that of each it must be possible to tell."""
    timed = next((i for i, socket in enumerate(container.socket) if not math.isinf(socket.stop_idle_sec)), None)
    for i, socket in enumerate(container.socket):
        kind = _untold(socket)
        if timed is not None and kind:
            what = f"nobody can tell when socket[{i}] is in use: it is {kind}"
            yield Problem(("socket", timed, "stop_idle_sec"), what, "remove it, and let the container end by itself")
            return


def _untold(socket: Socket) -> str:
    """What a socket is whose use the kernel does not show, "" for all others."""
    if socket.listen_fifo:
        return "a fifo"
    address = socket.listen_datagram or socket.listen_stream
    family = parse_listen_address(address).family if address else None
    if family is Family.VSOCK:
        return "a vsock socket"
    return "a unix datagram socket" if family is Family.UNIX and socket.listen_datagram else ""


def _options(socket: Socket, key: str, path: KeyPath) -> Iterator[Problem]:
    if not socket.on_demand and not math.isinf(socket.stop_idle_sec):
        yield Problem((*path, "stop_idle_sec"), "nothing would start it again", "set on_demand = true too")
    if socket.on_demand and socket.stop_idle_sec == 0:
        yield Problem((*path, "stop_idle_sec"), "would stop it at once", 'write for example "10min"')
    is_fifo = key == "listen_fifo"
    family = None if is_fifo else parse_listen_address(getattr(socket, key)).family
    is_ip = family in {Family.IPV4, Family.IPV6}
    if family is not Family.UNIX and key == "listen_sequential_packet":
        yield Problem((*path, key), "sequential packets need a unix socket", 'write "/run/NAME.sock" or "@NAME"')
    if socket.accept_from and not is_ip:
        yield Problem((*path, "accept_from"), "is for IP sockets", "a unix socket has socket_mode and socket_group")
    plain = Socket()
    for names, applies, where in (
        (_IP_ONLY, is_ip, "IP sockets"),
        (_TCP_ONLY, is_ip and key == "listen_stream", "TCP sockets"),
        (("pipe_size",), is_fifo, "fifos"),
        (("pass_credentials",), family is Family.UNIX, "unix sockets"),
        (("socket_user", "socket_group"), is_fifo or family is Family.UNIX, "unix sockets and fifos"),
    ):
        for name in names:
            if not applies and getattr(socket, name) != getattr(plain, name):
                yield Problem((*path, name), f"is only for {where}", "remove it", warning=True)
