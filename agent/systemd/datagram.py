# SPDX-License-Identifier: Apache-2.0
"""Datagrams to systemd's own sockets (journald, PID 1's notify socket): never blocking for long, reconnecting.

The socket is connected, because poll(2) on an AF_UNIX datagram socket tells about the receiver's full queue
only then (unix(7)); the client calls of libsystemd block in sendmsg(2) for as long as the receiver does not
read.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_SO_SNDBUFFORCE = 32
_SEND_BUFFER = 8 << 20
_UCRED = struct.Struct("3i")
_STALE = (ConnectionRefusedError, ConnectionResetError, BrokenPipeError)


def unix_address(name: str) -> str:
    """A socket's address as bind(2) takes it: `@name` is one in the abstract namespace."""
    return "\0" + name[1:] if name.startswith("@") else name


class Datagrams:
    """Sends to one address. Connects at the first use and again when the receiver was replaced."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket: socket.socket | None = None

    def send(self, data: bytes, *, fds: Sequence[int] = (), pid: int = 0, patience: float = 0.0) -> None:
        """Send one datagram, with copies of `fds`, as process `pid` (needs CAP_SYS_ADMIN unless 0: ourselves).

        While the receiver's queue is full this waits up to `patience` seconds. Raises OSError:
        BlockingIOError when the queue stayed full, FileNotFoundError or ConnectionRefusedError when nobody
        is there.
        """
        ancillary: list[tuple[int, int, bytes | array.array[int]]] = []
        if fds:
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds)))
        if pid:
            credentials = _UCRED.pack(pid, os.getuid(), os.getgid())
            ancillary.append((socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials))
        try:
            self._send(data, ancillary, patience)
        except _STALE:
            self.close()
            self._send(data, ancillary, patience)

    def _send(self, data: bytes, ancillary: list[tuple[int, int, bytes | array.array[int]]], patience: float) -> None:
        sock = self._connected()
        deadline = time.monotonic() + patience
        while True:
            try:
                sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                if not _wait_writable(sock, deadline):
                    raise
            else:
                return

    def _connected(self) -> socket.socket:
        if self._socket is None:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            sock = socket.socket(socket.AF_UNIX, kind)
            try:
                _enlarge(sock)
                sock.connect(unix_address(self.address))
            except BaseException:
                sock.close()
                raise
            self._socket = sock
        return self._socket

    def close(self) -> None:
        """Let go of the socket; a later send() opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _wait_writable(sock: socket.socket, deadline: float) -> bool:
    left = deadline - time.monotonic()
    if left <= 0:
        return False
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(left * 1000))


def _enlarge(sock: socket.socket) -> None:
    """Unread datagrams count against the sender's buffer (unix(7)): take systemd's own 8 MiB, else what is allowed."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
