# SPDX-License-Identifier: Apache-2.0
"""What the kernel knows of sockets, over NETLINK_SOCK_DIAG (sock_diag(7)): connections, listeners, bound files.

Answers hold for the network namespace of the agent, where its sockets are made. Asking costs one dump that
the kernel filters by port (IP) or state (unix); nothing can tell of a connection's end by itself.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import TYPE_CHECKING

import msgspec

from agent.errors import DeadlineExceeded, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/netlink.h, sock_diag.h, inet_diag.h, unix_diag.h, tcp_states.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 0x1
_NLM_F_DUMP = 0x300
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_SHOW_NAME, _SHOW_VFS, _SHOW_RQLEN = 1 << 0, 1 << 1, 1 << 4
_ATTR_NAME, _ATTR_VFS, _ATTR_RQLEN = 0, 1, 4
_ANY = 0xFFFFFFFF

ESTABLISHED, SYN_RECV, CLOSE, CLOSE_WAIT, LISTEN = 1, 3, 7, 8, 10

_HEADER = struct.Struct("=IHHII")
_INET_REQUEST = struct.Struct("=BBBxIHH16s16sIII")
_INET_MESSAGE = struct.Struct("=BBBB2s2s16s16sIIIIIIII")
_UNIX_REQUEST = struct.Struct("=BBxxIIIII")
_UNIX_MESSAGE = struct.Struct("=BBBxIII")
_ATTRIBUTE = struct.Struct("=HH")
_CHUNK = 1 << 16


class InetSocket(msgspec.Struct, frozen=True):
    """One TCP or UDP socket; `source` is its local address in network byte order, 4 or 16 bytes."""

    state: int
    source: bytes
    port: int
    uid: int
    inode: int


class UnixSocket(msgspec.Struct, frozen=True):
    """One unix socket. `name` is its bound address (abstract ones begin with NUL), `file` its node's (device, inode).

    `queue` counts, for a listener, the connections that wait to be accepted.
    """

    type: int
    state: int
    inode: int
    name: bytes
    file: tuple[int, int] | None
    queue: int


def _states(*states: int) -> int:
    return sum(1 << state for state in states)


def _request(body: bytes, flags: int) -> bytes:
    header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | flags, 1, 0)
    return header + body


def _inet_dump(family: int, protocol: int, port: int, states: int) -> bytes:
    body = _INET_REQUEST.pack(family, protocol, 0, states, socket.htons(port), 0, b"", b"", 0, _ANY, _ANY)
    return _request(body, _NLM_F_DUMP)


def _unix_dump(states: int, show: int) -> bytes:
    return _request(_UNIX_REQUEST.pack(socket.AF_UNIX, 0, states, 0, show, _ANY, _ANY), _NLM_F_DUMP)


def _unix_single(inode: int) -> bytes:
    body = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, _ANY, inode, _SHOW_NAME | _SHOW_VFS, _ANY, _ANY)
    return _request(body, 0)


def _payloads(data: bytes) -> Iterator[bytes | None]:
    """The messages of one netlink datagram; None marks the end of a dump. Raises OSError for an error message."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        payload = data[at + _HEADER.size : at + length]
        if kind == _NLMSG_DONE:
            yield None
            return
        if kind == _NLMSG_ERROR:
            number = -struct.unpack_from("=i", payload)[0]
            raise OSError(number, os.strerror(number))
        yield payload
        at += (length + 3) & ~3


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def parse_inet(payload: bytes) -> InetSocket:
    """One inet_diag_msg."""
    family, state, _, _, port, _, source, _, *_, uid, inode = _INET_MESSAGE.unpack_from(payload)
    length = 4 if family == socket.AF_INET else 16
    return InetSocket(state, source[:length], int.from_bytes(port, "big"), uid, inode)


def parse_unix(payload: bytes) -> UnixSocket:
    """One unix_diag_msg with its attributes."""
    _, kind, state, inode, _, _ = _UNIX_MESSAGE.unpack_from(payload)
    attributes = _attributes(payload[_UNIX_MESSAGE.size :])
    file: tuple[int, int] | None = None
    if len(vfs := attributes.get(_ATTR_VFS, b"")) == 8:
        node, device = struct.unpack("=II", vfs)
        file = (device, node)
    queue = struct.unpack_from("=I", attributes.get(_ATTR_RQLEN, b"\0\0\0\0"))[0]
    return UnixSocket(kind, state, inode, attributes.get(_ATTR_NAME, b""), file, queue)


def file_key(found: os.stat_result) -> tuple[int, int]:
    """A node's (device, inode) as unix_diag spells them: the kernel's device number, the low half of the inode's."""
    return (os.major(found.st_dev) << 20 | os.minor(found.st_dev), found.st_ino & 0xFFFFFFFF)


def _open() -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    sock = socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG)
    sock.connect((0, 0))
    return sock


def _ask(request: bytes) -> list[bytes]:
    """Ask and take the whole answer. The kernel queues its parts as they are read, so this never waits for anybody."""
    answer: list[bytes] = []
    with _open() as sock:
        sock.send(request)
        while True:
            try:
                data = sock.recv(_CHUNK)
            except BlockingIOError:
                return answer
            for payload in _payloads(data):
                if payload is None:
                    return answer
                answer.append(payload)


async def _dump(request: bytes, timeout: float) -> list[bytes]:  # noqa: ASYNC109 mapped to our own error
    """The same for long answers, giving way to others between the parts. Raises DeadlineExceeded, Unsupported."""
    loop = asyncio.get_running_loop()
    answer: list[bytes] = []
    try:
        with _open() as sock:
            async with asyncio.timeout(timeout):
                await loop.sock_sendall(sock, request)
                while True:
                    for payload in _payloads(await loop.sock_recv(sock, _CHUNK)):
                        if payload is None:
                            return answer
                        answer.append(payload)
                    await asyncio.sleep(0)
    except TimeoutError as e:
        raise DeadlineExceeded(f"the kernel did not list its sockets within {timeout:g} s") from e
    except OSError as e:
        raise Unsupported(
            "cannot list sockets", why=e.strerror or str(e), hint="load the modules tcp_diag and unix_diag"
        ) from e


def bound_file(fd: int) -> tuple[int, int] | None:
    """The node that a unix socket is bound to, comparable with file_key(); None when it has none or it can't
    be told.
    """
    try:
        (payload,) = _ask(_unix_single(os.fstat(fd).st_ino))
    except (OSError, ValueError):
        return None
    return parse_unix(payload).file


def is_bound_to(fd: int, path: str) -> bool:
    """Whether the node at `path` leads to the unix socket `fd`."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return bound_file(fd) == file_key(found)


def inet_holders(family: int, protocol: int, port: int) -> list[InetSocket]:
    """Who is bound to a port: TCP listeners, or UDP sockets. Raises OSError."""
    states = _states(LISTEN) if protocol == socket.IPPROTO_TCP else _states(CLOSE, ESTABLISHED)
    return [parse_inet(payload) for payload in _ask(_inet_dump(family, protocol, port, states))]


def unix_holders(name: bytes, file: tuple[int, int] | None) -> list[UnixSocket]:
    """Who is bound to an abstract `name` or to the node `file`, without the connections. Raises OSError."""
    found = [parse_unix(payload) for payload in _ask(_unix_dump(_ANY, _SHOW_NAME | _SHOW_VFS))]
    bound = [s for s in found if s.type == socket.SOCK_DGRAM or s.state != ESTABLISHED]
    return [s for s in bound if (s.file == file if file else s.name == name)]


async def count_connections(fd: int, *, timeout: float = 5.0) -> int:  # noqa: ASYNC109 mapped to our own error
    """How many connections a listening socket has: accepted ones and those that wait to be; 0 for datagrams.

    Connections to one port of all addresses count together for a wildcard. Half-closed by the peer still
    counts. Raises Unsupported when the kernel cannot tell, DeadlineExceeded.
    """
    with socket.socket(fileno=os.dup(fd)) as sock:
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return 0
        if sock.family == socket.AF_UNIX:
            return await _unix_connections(sock, timeout)
        if sock.family in {socket.AF_INET, socket.AF_INET6}:
            return await _inet_connections(sock, timeout)
    raise Unsupported(f"cannot count the connections of a socket of family {sock.family}")


async def _inet_connections(sock: socket.socket, timeout: float) -> int:  # noqa: ASYNC109 handed on
    host, port = sock.getsockname()[:2]
    source = socket.inet_pton(sock.family, host.partition("%")[0])
    states = _states(ESTABLISHED, SYN_RECV, CLOSE_WAIT)
    payloads = await _dump(_inet_dump(sock.family, socket.IPPROTO_TCP, port, states), timeout)
    return sum(1 for payload in payloads if not any(source) or parse_inet(payload).source == source)


async def _unix_connections(sock: socket.socket, timeout: float) -> int:  # noqa: ASYNC109 handed on
    inode = os.fstat(sock.fileno()).st_ino
    show = _SHOW_NAME | _SHOW_VFS | _SHOW_RQLEN
    found = [parse_unix(payload) for payload in await _dump(_unix_dump(_states(ESTABLISHED, LISTEN), show), timeout)]
    listener = next((s for s in found if s.inode == inode), None)
    if listener is None:
        return 0
    # An accepted socket has its listener's address; one that waits has no inode yet and is not in the list.
    accepted = [
        s
        for s in found
        if s.state == ESTABLISHED and (s.file == listener.file if listener.file else s.name == listener.name)
    ]
    return len(accepted) + listener.queue
