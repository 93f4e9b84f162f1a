# SPDX-License-Identifier: Apache-2.0
"""The socket to which systemd connects the commands of cleat@NAME.service: their standard input and output.

A client sends one line, "VERB NAME", and gets one, "STATUS WORDS", with which it ends (units/cleat-handle). That is a
shell and nothing else: a bus client costs as much again as starting a process does. PID 1 makes the connection in the
name of the command, so SO_PEERCRED is its pid (unix(7), systemd.exec(5) on StandardInput=file:).

A client that waits for long may outlive the agent: its connection is left in the fd store, and the next agent goes on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from agent.background import Background
from agent.daemon.listener import Listener, bound_to, streams_of
from agent.errors import CleatError
from agent.systemd import journal
from agent.systemd.peer import peer_of
from agent.systemd.text import one_line

logger = logging.getLogger(__name__)

_REQUEST_SEC = 10.0
_LINE_MAX = 1024
_FAILED = 199
"""Exit status of a command that fails; the unit is not restarted after it (RestartPreventExitStatus=)."""


class Client:
    """A command of the unit: its pid, its connection's fd, and whether it has gone, which is what systemd does to a
    start it cancels.
    """

    def __init__(self, pid: int, fd: int) -> None:
        self.pid = pid
        self.fd = fd
        self.gone = asyncio.Event()


Verb = Callable[[Client, str], Awaitable[None]]


class HandleSocket:
    """Listens at `path`, for root only. An agent that ends leaves /dev/null there, which answers nobody."""

    def __init__(self, path: Path, verbs: Mapping[str, Verb]) -> None:
        self._path = path
        self._new = f"{path}.new"
        self._verbs = verbs
        self._background = Background()
        self._listener: Listener | None = None

    def start(self) -> None:
        """Listen. What cannot be had is told to the journal; containers do without their handles then."""
        try:
            self._listener = Listener(bound_to(self._fresh()), self._serve, limit=_LINE_MAX)
            os.rename(self._new, self._path)
        except OSError as e:
            error = CleatError("cannot listen for handles", file=os.fspath(self._path), why=e.strerror or str(e))
            journal.send(journal.Event.SOCKET_FAILED, "", error=error)

    def close(self) -> None:
        if self._listener is None:
            return
        self._listener.close()
        try:
            os.symlink(os.devnull, self._fresh())
            os.rename(self._new, self._path)
        except OSError as e:
            logger.debug("handle: %s", e)

    def _fresh(self) -> str:
        """The name under which the next node is made, not there yet."""
        with suppress(FileNotFoundError):
            os.unlink(self._new)
        return self._new

    async def resume(self, left: Iterable[tuple[str, str, int]]) -> None:
        """Go on with clients that waited for a former agent: verb, name and the connection's fd of each."""
        for verb, name, fd in left:
            connection = socket.socket(fileno=fd)
            if _is_gone(connection):
                # Its start was cancelled while there was no agent.
                connection.close()
                continue
            streams = await streams_of(connection, limit=_LINE_MAX)
            if streams is not None:
                self._background.spawn(self._talk(*streams, verb, name))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_SEC):
                line = await reader.readline()
        except (OSError, TimeoutError, ValueError) as e:
            logger.debug("handle: %s", e)
            writer.close()
            return
        verb, _, name = line.decode(errors="replace").strip().partition(" ")
        await self._talk(reader, writer, verb, name)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, verb: str, name: str) -> None:
        connection = writer.get_extra_info("socket")
        client = Client(peer_of(connection).pid, connection.fileno())
        watching = asyncio.create_task(_see_gone(reader, client))
        try:
            writer.write(await self._answer(client, verb, name))
            await writer.drain()
        except OSError as e:
            logger.debug("handle: %s", e)
        finally:
            watching.cancel()
            writer.close()

    async def _answer(self, client: Client, verb: str, name: str) -> bytes:
        do = self._verbs.get(verb)
        try:
            if do is None:
                raise CleatError(f"{verb!r} is nothing that a handle can ask for")
            await do(client, name)
        except CleatError as e:
            return f"{_FAILED} {one_line(str(e))}\n".encode()
        except Exception:
            logger.exception("%s %s", verb, name)
            return f"{_FAILED} the agent met a fault of its own: journalctl -u cleat\n".encode()
        return b"0\n"


def _is_gone(connection: socket.socket) -> bool:
    connection.setblocking(False)  # noqa: FBT003 its only form
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


async def _see_gone(reader: asyncio.StreamReader, client: Client) -> None:
    """It has nothing more to say: the end of its stream is its own."""
    try:
        while await reader.read(_LINE_MAX):
            pass
    except OSError as e:
        logger.debug("handle: %s", e)
    client.gone.set()
