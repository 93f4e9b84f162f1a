# SPDX-License-Identifier: Apache-2.0
"""`accept_from`: who may reach a listening IP socket, as a packet filter on that socket (socket(7), SO_ATTACH_FILTER).

Not systemd's IPAddressAllow=: that filter belongs to a cgroup, and a socket belongs to the cgroup of who
made it, the agent's, wherever it is passed (systemd.resource-control(5)). Packets from elsewhere are dropped
before there is a connection, so they start no container either; accepted sockets inherit the filter. The
program is in classic BPF (the kernel's filter.rst), reads the IP header, and lets through what one of the
networks holds.
"""

from __future__ import annotations

import array
import ipaddress
import re
import socket
import struct
from contextlib import suppress

from agent.definition.values import InvalidValue, shown

_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
_INSTRUCTION = struct.Struct("=HBBI")
_FPROG = struct.Struct("@HP")
_MAX_INSTRUCTIONS = 4096

_LOAD_BYTE, _LOAD_WORD, _AND, _SHIFT_RIGHT = 0x30, 0x20, 0x54, 0x74
_JUMP_EQUAL, _JUMP, _RETURN = 0x15, 0x05, 0x06
_NETWORK_HEADER = 0xFFF00000  # SKF_NET_OFF
_SOURCE = {4: 12, 6: 8}
_PASS = 0xFFFFFFFF

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# The names that IPAddressAllow= knows.
_NAMED = {
    "any": ("0.0.0.0/0", "::/0"),
    "localhost": ("127.0.0.0/8", "::1/128"),
    "link-local": ("169.254.0.0/16", "fe80::/64"),
    "multicast": ("224.0.0.0/4", "ff00::/8"),
}


def parse_networks(text: str) -> tuple[Network, ...]:
    """Addresses with or without prefix length, and systemd's names for some, between blanks or commas."""
    found: list[Network] = []
    for word in re.split(r"[\s,]+", text.strip()):
        try:
            found += [ipaddress.ip_network(n, strict=False) for n in _NAMED.get(word, (word,))]
        except ValueError as e:
            raise InvalidValue(
                f"{shown(word)} is not a network: {e}",
                'write for example "10.0.0.0/8 fd00::/8" or "localhost"',
            ) from None
    return tuple(found)


def program(networks: tuple[Network, ...]) -> bytes:
    """The filter for a list of networks. Raises InvalidValue when it would be longer than the kernel takes."""
    four = _section([n for n in networks if n.version == 4])
    six = _section([n for n in networks if n.version == 6])
    steps = [
        (_LOAD_BYTE, 0, 0, _NETWORK_HEADER),
        (_SHIFT_RIGHT, 0, 0, 4),
        (_JUMP_EQUAL, 0, 1, 6),
        (_JUMP, 0, 0, len(four)),
        *four,
        *six,
    ]
    if len(steps) > _MAX_INSTRUCTIONS:
        raise InvalidValue(f"{len(networks)} networks are too many for one socket", "sum them up, or use nftables")
    return b"".join(_INSTRUCTION.pack(*step) for step in steps)


def _section(networks: list[Network]) -> list[tuple[int, int, int, int]]:
    steps = [step for network in networks for step in _network(network)]
    return [*steps, (_RETURN, 0, 0, 0)]


def _network(network: Network) -> list[tuple[int, int, int, int]]:
    """Pass when the source lies in it, else go on behind these steps."""
    start = _NETWORK_HEADER + _SOURCE[network.version]
    words = zip(_words(network.network_address.packed), _words(network.netmask.packed), strict=True)
    tests = [(i, value, mask) for i, (value, mask) in enumerate(words) if mask]
    steps: list[tuple[int, int, int, int]] = []
    for done, (i, value, mask) in enumerate(tests):
        rest = 3 * (len(tests) - done - 1) + 1
        steps += [
            (_LOAD_WORD, 0, 0, start + 4 * i),
            (_AND, 0, 0, mask),
            (_JUMP_EQUAL, 0, rest, value),
        ]
    return [*steps, (_RETURN, 0, 0, _PASS)]


def _words(packed: bytes) -> tuple[int, ...]:
    return struct.unpack(f">{len(packed) // 4}I", packed)


def attach(sock: socket.socket, networks: tuple[Network, ...]) -> None:
    """Let only `networks` through, all when there are none; replaces an earlier filter in one step.

    Raises OSError: newer kernels want CAP_NET_ADMIN for TCP.
    """
    if not networks:
        with suppress(FileNotFoundError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        return
    code = array.array("B", program(networks))
    address, length = code.buffer_info()
    fprog = _FPROG.pack(length // _INSTRUCTION.size, address)
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
