# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of a connected unix socket (unix(7), SO_PEERCRED)."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

_UCRED = struct.Struct("=iII")


class PeerCredentials(NamedTuple):
    pid: int
    uid: int
    gid: int


def peer_of(sock: socket.socket) -> PeerCredentials:
    """As they were when the connection was made. Raises OSError."""
    return PeerCredentials(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))
