# SPDX-License-Identifier: Apache-2.0
"""Whether somebody uses a socket that another process reads from: connections, and datagrams that were read.

The kernel counts no datagrams of a socket. But it keeps the time of the last one that was read, for whoever asked once
(socket(7), SIOCGSTAMP; in its sock_gettstamp() and sock_recv_cmsgs()), whichever process reads. It does not where the
reader has it sent along with each datagram: such a socket counts as used.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct

from agent.errors import Unsupported
from agent.systemd import sockdiag

# linux/sockios.h, asm-generic/socket.h: SO_TIMESTAMP, SO_TIMESTAMPNS, SO_TIMESTAMPING, each old and new.
_SIOCGSTAMPNS = 0x8907
_OWN_STAMPS = (29, 35, 37, 63, 64, 65)
_TIMESPEC = struct.Struct("@ll")

Stamp = tuple[int, int]


class SocketUse:
    """Tells for one socket whether it was in use since it was asked last; it does not own the fd."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._last = (0, 0)

    async def is_used(self) -> bool:
        """Raises Unsupported where nobody can tell, DeadlineExceeded."""
        with socket.socket(fileno=os.dup(self._fd)) as sock:
            if sock.type == socket.SOCK_DGRAM:
                return self._has_had_datagram(sock)
        return await sockdiag.count_connections(self._fd) > 0

    def _has_had_datagram(self, sock: socket.socket) -> bool:
        last, self._last = self._last, _last_read(sock)
        return self._last != last or _is_readable(sock) or _has_own_stamps(sock)


def _last_read(sock: socket.socket) -> Stamp:
    try:
        seconds, nanoseconds = _TIMESPEC.unpack(fcntl.ioctl(sock, _SIOCGSTAMPNS, bytes(_TIMESPEC.size)))
    except OSError as e:
        if e.errno == errno.ENOENT:
            return (0, 0)
        raise Unsupported(
            "cannot tell when a datagram was last read", why=e.strerror or str(e), hint="remove stop_idle_sec"
        ) from e
    return seconds, nanoseconds


def _is_readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _has_own_stamps(sock: socket.socket) -> bool:
    return any(_option(sock, option) for option in _OWN_STAMPS)


def _option(sock: socket.socket, option: int) -> int:
    """0 for an option that this kernel does not know."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, option)
    except OSError:
        return 0
