# SPDX-License-Identifier: Apache-2.0
"""The packet filter behind accept_from, in an interpreter of its few instructions and in the kernel."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.definition.values import InvalidValue
from agent.systemd.accept_filter import attach, parse_networks, program

NETWORK_HEADER = 0xFFF00000


def run(code: bytes, packet: bytes) -> int:
    """Execute classic BPF (the kernel's filter.rst) on an IP packet."""
    steps = list(struct.iter_unpack("=HBBI", code))
    a = at = 0
    while True:
        op, true, false, k = steps[at]
        at += 1
        match op:
            case 0x30:
                a = packet[k - NETWORK_HEADER]
            case 0x20:
                a = struct.unpack_from(">I", packet, k - NETWORK_HEADER)[0]
            case 0x54:
                a &= k
            case 0x74:
                a >>= k
            case 0x15:
                at += true if a == k else false
            case 0x05:
                at += k
            case 0x06:
                return int(k)
            case _:
                raise AssertionError(hex(op))


def packet(source: str) -> bytes:
    address = ipaddress.ip_address(source)
    if address.version == 4:
        return b"\x45" + bytes(11) + address.packed + b"\x7f\0\0\1"
    return b"\x60" + bytes(7) + address.packed + bytes(16)


def passes(networks: str, source: str) -> bool:
    return run(program(parse_networks(networks)), packet(source)) > 0


@pytest.mark.parametrize(
    ("networks", "source", "expected"),
    [
        ("10.0.0.0/8", "10.255.0.1", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("10.0.0.0/8", "::1", False),
        ("10.0.0.7", "10.0.0.7", True),
        ("10.0.0.7", "10.0.0.8", False),
        ("10.0.0.9/8", "10.1.1.1", True),
        ("any", "203.0.113.1", True),
        ("any", "2001:db8::1", True),
        ("0.0.0.0/0", "2001:db8::1", False),
        ("localhost", "127.0.0.9", True),
        ("localhost", "::1", True),
        ("localhost", "::2", False),
        ("2001:db8::/33", "2001:db8:7fff::1", True),
        ("2001:db8::/33", "2001:db8:8000::1", False),
        ("192.168.1.0/24, fd00::/8\n10.0.0.0/8", "fd12::9", True),
        ("link-local", "fe80::1", True),
        ("multicast", "239.1.1.1", True),
    ],
)
def test_networks(networks: str, source: str, *, expected: bool) -> None:
    assert passes(networks, source) is expected


@pytest.mark.parametrize("text", ["x", "10.0.0.0/33", "10.0.0.256", "::1/129", "10.0.0.0/8;", "localhos"])
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(InvalidValue):
        parse_networks(text)


_FOUR = st.tuples(st.ip_addresses(v=4), st.integers(0, 32))
_SIX = st.tuples(st.ip_addresses(v=6), st.integers(0, 128))


@given(st.lists(_FOUR | _SIX, max_size=20), st.ip_addresses())
def test_agrees_with_ipaddress(
    networks: list[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]],
    source: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    found = tuple(ipaddress.ip_network((address, length), strict=False) for address, length in networks)
    expected = any(source in network for network in found if network.version == source.version)
    assert (run(program(found), packet(str(source))) > 0) is expected


def test_too_many_networks() -> None:
    with pytest.raises(InvalidValue, match="too many"):
        program(parse_networks(" ".join(f"2001:db8::{i:x}" for i in range(400))))


def receives(server: socket.socket, source: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind((source, 0))
        client.sendto(b"x", server.getsockname())
    try:
        return server.recv(10) == b"x"
    except BlockingIOError:
        return False


def test_in_the_kernel() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0)
        attach(server, parse_networks("127.0.0.2/31 10.0.0.0/8"))
        # On loopback a datagram is there, or dropped, when sendto(2) returns.
        assert [receives(server, f"127.0.0.{n}") for n in (1, 2, 3, 4)] == [False, True, True, False]
        attach(server, parse_networks("127.0.0.4"))
        assert [receives(server, f"127.0.0.{n}") for n in (3, 4)] == [False, True]
        attach(server, ())
        assert receives(server, "127.0.0.1")
        attach(server, ())
