# SPDX-License-Identifier: Apache-2.0
"""A listening stream socket and those who connect to it, each served by a task of its own.

Not asyncio's Server: one that is closed while a connection is being accepted fails in its transport's finalizer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.background import Background

logger = logging.getLogger(__name__)

_BACKLOG = 4096
_AT_ONCE = 64
_PAUSE_SEC = 1.0

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def bound_to(path: Path | str) -> socket.socket:
    """A unix socket at a path that is free, for its owner only. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(os.fspath(path))
        # Nobody can connect before it listens.
        os.chmod(path, 0o600)
    except OSError:
        sock.close()
        raise
    return sock


async def streams_of(
    connection: socket.socket, *, limit: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    """Of a connection that is theirs from here on; None when it is broken, and closed then."""
    try:
        return await asyncio.open_connection(sock=connection, limit=limit)
    except OSError as e:
        logger.debug("connection: %s", e)
        connection.close()
        return None


class Listener:
    """Listens on `sock`, which is its own from here on, until close(). `limit`: what a reader buffers, in bytes.

    `serve` closes its writer and catches its own errors; who is being served when the listener is closed goes on to be.
    """

    def __init__(self, sock: socket.socket, serve: Serve, *, limit: int) -> None:
        self._sock = sock
        self._serve = serve
        self._limit = limit
        self._background = Background()
        self._pause: asyncio.TimerHandle | None = None
        sock.setblocking(False)  # noqa: FBT003 its only form
        sock.listen(_BACKLOG)
        self._resume()

    def _resume(self) -> None:
        self._pause = None
        asyncio.get_running_loop().add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._sock.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as e:
                # No room for another file descriptor: the queue waits, and the loop does not spin.
                logger.debug("accept: %s", e)
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._sock)
                self._pause = loop.call_later(_PAUSE_SEC, self._resume)
                return
            self._background.spawn(self._serve_one(connection))

    async def _serve_one(self, connection: socket.socket) -> None:
        streams = await streams_of(connection, limit=self._limit)
        if streams is not None:
            await self._serve(*streams)

    def close(self) -> None:
        """Whoever waits to be accepted is turned away."""
        asyncio.get_running_loop().remove_reader(self._sock)
        if self._pause is not None:
            self._pause.cancel()
        self._sock.close()
