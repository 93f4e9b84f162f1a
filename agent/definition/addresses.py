# SPDX-License-Identifier: Apache-2.0
"""Addresses to listen on (systemd.socket(5), ListenStream=) and published ports (podman-run(1), --publish); pure."""

from __future__ import annotations

import ipaddress
import re
from enum import StrEnum

import msgspec

from agent.definition.values import InvalidValue, shown

SUN_PATH_MAX = 107
VSOCK_CID_ANY = 2**32 - 1
_VSOCK = re.compile(r"vsock:([0-9]*):([0-9]+)", re.ASCII)
_INET6 = re.compile(r"\[([0-9a-fA-F:.]+)(?:%([^\]/\s]+))?\]:([0-9]+)(?:%([^\]/\s]+))?", re.ASCII)
_INET4 = re.compile(r"([0-9.]+):([0-9]+)", re.ASCII)


class Family(StrEnum):
    IPV4 = "ipv4"
    IPV6 = "ipv6"
    UNIX = "unix"
    VSOCK = "vsock"


class ListenAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where to listen: `host`, `scope` and `port` for IP, `path` for unix, `cid` and `port` for vsock.

    A path "@name" is abstract. A bare port is all of IPv6 and, as long as bind_ipv6_only does not forbid it, of IPv4;
    `wildcard` is true then.
    """

    family: Family
    host: str = ""
    scope: str = ""
    port: int = 0
    path: str = ""
    cid: int = 0
    wildcard: bool = False

    @property
    def is_abstract(self) -> bool:
        return self.path.startswith("@")

    def __str__(self) -> str:
        match self.family:
            case Family.UNIX:
                return self.path
            case Family.IPV4:
                return f"{self.host}:{self.port}"
            case Family.IPV6:
                return (
                    str(self.port)
                    if self.wildcard
                    else f"[{self.host}{'%' * bool(self.scope)}{self.scope}]:{self.port}"
                )
            case Family.VSOCK:
                return f"vsock:{'' if self.cid == VSOCK_CID_ANY else self.cid}:{self.port}"


def parse_listen_address(text: str) -> ListenAddress:
    """A port, "10.0.0.1:80", "[::1%lo]:80", "/run/web.sock", "@abstract" or "vsock:CID:PORT"."""
    if text.startswith(("/", "@")):
        return _unix(text)
    if text.isascii() and text.isdigit():
        return ListenAddress(family=Family.IPV6, host="::", port=_port(text, text), wildcard=True)
    if found := _VSOCK.fullmatch(text):
        return _vsock(text, *found.groups())
    if found := _INET6.fullmatch(text):
        host, scope, port, late_scope = found.groups()
        return ListenAddress(
            family=Family.IPV6,
            host=_ip(text, host, 6),
            scope=scope or late_scope or "",
            port=_port(text, port),
        )
    if found := _INET4.fullmatch(text):
        return ListenAddress(family=Family.IPV4, host=_ip(text, found[1], 4), port=_port(text, found[2]))
    raise InvalidValue(
        f"{shown(text)} is not an address to listen on",
        'write a port, "10.0.0.1:80", "[::1]:80", "/run/web.sock", "@name" or "vsock:CID:PORT"',
    )


def parse_fifo(text: str) -> ListenAddress:
    """The path of a fifo, for listen_fifo."""
    if not text.startswith("/"):
        raise InvalidValue(f"{shown(text)} is not the path of a fifo", "write an absolute path")
    return ListenAddress(family=Family.UNIX, path=_clean_path(text))


def _unix(text: str) -> ListenAddress:
    if len(text.encode(errors="surrogateescape")) > SUN_PATH_MAX:
        raise InvalidValue(f"{shown(text)} is too long for a socket", f"it may have at most {SUN_PATH_MAX} bytes")
    if text in {"/", "@"}:
        raise InvalidValue(f"{shown(text)} names no socket", "write the socket's whole path")
    return ListenAddress(family=Family.UNIX, path=text if text.startswith("@") else _clean_path(text))


def _clean_path(text: str) -> str:
    if text.endswith("/") or ".." in text.split("/"):
        raise InvalidValue(f"{shown(text)} is not the path of a socket", "write an absolute path without '..'")
    return text


def _vsock(text: str, cid: str, port: str) -> ListenAddress:
    number = int(cid[:12]) if cid else VSOCK_CID_ANY
    if number > VSOCK_CID_ANY or len(port) > 10 or int(port) > VSOCK_CID_ANY:
        raise InvalidValue(f"{shown(text)} is not a vsock address", "CID and port are 32-bit numbers")
    return ListenAddress(family=Family.VSOCK, cid=number, port=int(port))


def _port(text: str, port: str) -> int:
    if not 1 <= len(port) <= 5 or not 1 <= int(port) <= 65535:
        raise InvalidValue(f"{shown(text)}: {shown(port)} is not a port", "ports are 1 to 65535")
    return int(port)


def _ip(text: str, host: str, version: int) -> str:
    try:
        return str(ipaddress.IPv4Address(host) if version == 4 else ipaddress.IPv6Address(host))
    except ValueError as e:
        raise InvalidValue(f"{shown(text)}: {e}") from None


def check_ip(text: str) -> str:
    """An IPv4 or IPv6 address in its canonical spelling."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise InvalidValue(f"{shown(text)} is not an IP address", 'write for example "10.0.0.2" or "fd00::2"') from None


class Protocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


class PortMapping(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of network.publish. `host_port` 0 = any free one; `count` is the length of the range."""

    container_port: int
    host_port: int = 0
    host_ip: str = ""
    count: int = 1
    protocol: Protocol = Protocol.TCP


_PUBLISH = re.compile(
    r"(?:(?:\[(?P<ip6>[0-9a-fA-F:.]+)\]|(?P<ip4>[0-9]+(?:\.[0-9]+)+)):)?(?:(?P<host>[0-9]*(?:-[0-9]+)?):)?"
    r"(?P<container>[0-9]+(?:-[0-9]+)?)(?:/(?P<protocol>[a-z]+))?",
    re.ASCII,
)


def parse_publish(text: str) -> PortMapping:
    """ "[IP:][HOSTPORT:]CONTAINERPORT[/PROTOCOL]", with equal ranges "8000-8009:80-89"."""
    found = _PUBLISH.fullmatch(text)
    if found is None:
        raise InvalidValue(
            f"{shown(text)} is not a port to publish", 'write for example "8080:80" or "127.0.0.1:53:53/udp"'
        )
    protocol = found["protocol"] or "tcp"
    if protocol not in set(Protocol):
        raise InvalidValue(f"{shown(text)}: unknown protocol {shown(protocol)}", "protocols are tcp, udp and sctp")
    container, count = _range(text, found["container"])
    host, host_count = _range(text, found["host"]) if found["host"] else (0, count)
    if host_count != count:
        raise InvalidValue(
            f"{shown(text)}: the two ranges have {host_count} and {count} ports", "make them equally long"
        )
    ip = _ip(text, found["ip6"], 6) if found["ip6"] else _ip(text, found["ip4"], 4) if found["ip4"] else ""
    return PortMapping(container_port=container, host_port=host, host_ip=ip, count=count, protocol=Protocol(protocol))


def _range(text: str, ports: str) -> tuple[int, int]:
    first, _, last = ports.partition("-")
    start = _port(text, first)
    end = _port(text, last) if last else start
    if end < start:
        raise InvalidValue(f"{shown(text)}: the range {ports} ends before it starts")
    return start, end - start + 1
