# SPDX-License-Identifier: Apache-2.0
"""Metrics for Prometheus over HTTP/1.1 (RFC 9112): GET of /metrics, one request per connection, everything bounded.

Served on a socket file that only root can connect to; cleat-metrics.socket leads there from the network when it is
enabled. With `metrics.listen` the agent also listens on that address itself.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from pathlib import Path

import msgspec

from agent import __version__
from agent.container import figures
from agent.container.figures import Stats
from agent.daemon import exposition
from agent.daemon.agent import Agent
from agent.daemon.listener import Listener, bound_to
from agent.definition.model import Socket
from agent.errors import CleatError
from agent.systemd import journal, sockets

_REQUEST_MAX = 8192
_REQUEST_SEC = 5.0
_ANSWER_SEC = 30.0
_CLIENTS_MAX = 8
_PATHS = frozenset({"/metrics", "/"})


class BadRequest(msgspec.Struct, frozen=True):
    """What to answer instead of the metrics."""

    status: str


def parse(head: bytes) -> str | BadRequest:
    """The method of a request for the metrics, out of its first line."""
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) != 3 or words[2] not in {b"HTTP/1.0", b"HTTP/1.1"}:
        return BadRequest("400 Bad Request")
    if words[0] not in {b"GET", b"HEAD"}:
        return BadRequest("405 Method Not Allowed")
    path = words[1].decode("ascii", "replace").partition("?")[0]
    return words[0].decode() if path in _PATHS else BadRequest("404 Not Found")


def answer(status: str, content: bytes, *, content_type: str, with_body: bool = True) -> bytes:
    """A whole response, after which the connection is closed."""
    allow = "Allow: GET, HEAD\r\n" if status.startswith("405") else ""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}\r\n"
        f"{allow}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (content if with_body else b"")


class Metrics:
    """Owns the listening sockets."""

    def __init__(self, agent: Agent, path: Path, listen: str) -> None:
        self._agent = agent
        self._path = path
        self._listen = listen
        self._listeners: list[Listener] = []
        self._clients = 0

    def start(self) -> None:
        """Listen. An address that cannot be had is told to the journal, and the agent goes on without."""
        try:
            self._path.unlink(missing_ok=True)
            self._on(bound_to(self._path))
            if self._listen:
                self._on(socket.socket(fileno=sockets.bind(Socket(listen_stream=self._listen), file="cleat.toml")))
        except OSError as e:
            error = CleatError("cannot serve metrics", file=os.fspath(self._path), why=e.strerror or str(e))
            journal.send(journal.Event.SOCKET_FAILED, "", error=error)
        except CleatError as e:
            journal.send(journal.Event.SOCKET_FAILED, "metrics.listen", error=e)

    def _on(self, sock: socket.socket) -> None:
        self._listeners.append(Listener(sock, self._serve, limit=_REQUEST_MAX))

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        with suppress(OSError):
            os.unlink(self._path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            writer.write(await self._answer(reader))
            async with asyncio.timeout(_ANSWER_SEC):
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        finally:
            self._clients -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        if self._clients > _CLIENTS_MAX:
            return _refusal("503 Service Unavailable")
        try:
            async with asyncio.timeout(_REQUEST_SEC):
                request = parse(await reader.readuntil(b"\r\n\r\n"))
        except asyncio.LimitOverrunError:
            request = BadRequest("431 Request Header Fields Too Large")
        except TimeoutError:
            request = BadRequest("408 Request Timeout")
        if isinstance(request, BadRequest):
            return _refusal(request.status)
        body = (await self._page()).encode()
        return answer("200 OK", body, content_type=exposition.CONTENT_TYPE, with_body=request == "GET")

    async def _page(self) -> str:
        """Containers one by one, so that nothing else waits for the many small files that are read."""
        found: list[Stats] = []
        for name, supervisor in sorted(self._agent.supervisors.items()):
            if supervisor.running is not None and supervisor.state.is_up:
                found.append(figures.stats(name, supervisor.running))
                await asyncio.sleep(0)
        return exposition.text(__version__, self._agent.statuses(()), found)


def _refusal(status: str) -> bytes:
    return answer(status, f"{status}\n".encode(), content_type="text/plain")
