# SPDX-License-Identifier: Apache-2.0
"""Who starts programs for the agent: the agent itself, or the executor on its behalf."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from agent.background import Background, completed
from agent.errors import CleatError, ExecutorLost
from agent.process import Process, writable
from agent.spawn import wire
from agent.spawn.child import bounding_set
from agent.spawn.request import Request, carry_out

_HINT = "journalctl -u cleat-executor"
_ANSWER_DEADLINE = 10.0


class Spawner(Protocol):
    """Starts what a request says."""

    async def spawn(self, request: Request, fds: Sequence[int]) -> Process:
        """`fds` stay the caller's. Raises CleatError, OSError."""
        ...

    async def bounding_set(self) -> int:
        """The capabilities that what it starts can have at most, as a mask. Raises CleatError."""
        ...


class Here:
    """Starts everything itself: in the foreground, and for an agent without root."""

    async def spawn(self, request: Request, fds: Sequence[int]) -> Process:
        return Process(carry_out(request, fds), request.argv)

    async def bounding_set(self) -> int:
        return bounding_set()


HERE = Here()


class Remote:
    """Has the executor do it. Connects at once, so that systemd starts it, and again when it has gone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._next = 0
        self._asked: dict[int, tuple[Request, asyncio.Future[Process]]] = {}
        self._running: dict[int, asyncio.Future[int]] = {}
        self._told: dict[int, asyncio.Future[bool]] = {}
        self._background = Background()
        self._hello: asyncio.Future[int] | None = None
        self._sending = asyncio.Lock()

    def connect(self) -> None:
        """Raises CleatError when there is no executor to be had."""
        if self._socket is not None:
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(os.fspath(self._path))
        except OSError as e:
            sock.close()
            raise CleatError(
                f"cannot reach the executor at {self._path}",
                why=e.strerror or str(e),
                hint="systemctl restart cleat-executor.socket",
            ) from e
        sock.setblocking(False)  # noqa: FBT003 its only form
        asyncio.get_running_loop().add_reader(sock, self._heard)
        self._socket = sock
        self._hello = asyncio.get_running_loop().create_future()

    async def bounding_set(self) -> int:
        self.connect()
        assert self._hello is not None
        return await asyncio.shield(self._hello)

    async def spawn(self, request: Request, fds: Sequence[int]) -> Process:
        self.connect()
        self._next += 1
        number = self._next
        answer: asyncio.Future[Process] = asyncio.get_running_loop().create_future()
        self._asked[number] = request, answer
        try:
            await self._send(wire.packets(number, request, fds))
        except BaseException as e:
            self._asked.pop(number, None)
            if isinstance(e, OSError):
                raise _gone(request) from e
            raise
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            # It comes into being all the same, and who asked will clean up behind it: not before it is over.
            ending = self._background.spawn(self._end_unwanted(answer))
            await completed(asyncio.create_task(asyncio.wait({ending}, timeout=_ANSWER_DEADLINE)))
            raise
        except ExecutorLost:
            await self._successor()
            raise

    async def _end_unwanted(self, answer: asyncio.Future[Process]) -> None:
        try:
            process = await answer
            await process.reap()
        except ExecutorLost:
            await self._successor()
        except (CleatError, OSError):
            pass

    async def _successor(self) -> None:
        """What a lost executor had begun is over when there is a new one: systemd ends all that it leaves before."""
        with suppress(CleatError, TimeoutError):
            async with asyncio.timeout(_ANSWER_DEADLINE):
                await self.bounding_set()

    def notify_as(self, pid: int, text: str) -> asyncio.Future[bool]:
        """Tell the service manager `text` (assignments, one per line) as if process `pid` had said it.

        What is told is delivered in its order; the result, whether it was, need not be waited for.
        """
        self._next += 1
        told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._told[self._next] = told
        self._background.spawn(self._tell(wire.Notify(self._next, pid, text)))
        return told

    async def _tell(self, message: wire.Notify) -> None:
        try:
            self.connect()
            await self._send([(wire.encode(message), [], -1)])
        except (CleatError, OSError):
            told = self._told.pop(message.id, None)
            if told is not None and not told.done():
                told.set_result(False)

    async def _send(self, packets: list[tuple[bytes, list[int], int]]) -> None:
        async with self._sending:
            sent = 0
            try:
                for data, fds, _ in packets:
                    await self._send_one(data, fds)
                    sent += 1
            finally:
                if 0 < sent < len(packets):
                    # Fds without their request: the next one would get them.
                    self.close()
                for _, _, own in packets:
                    if own >= 0:
                        os.close(own)

    async def _send_one(self, data: bytes, fds: Sequence[int]) -> None:
        while True:
            sock = self._socket
            if sock is None:
                raise ConnectionResetError("the executor has gone")
            try:
                wire.send(sock, data, fds)
            except BlockingIOError:
                await writable(sock.fileno())
            else:
                return

    def _heard(self) -> None:
        assert self._socket is not None
        try:
            data, fds = wire.receive(self._socket)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._lost()
            return
        match wire.decode_answer(data):
            case wire.Hello(mask):
                assert self._hello is not None
                self._hello.set_result(mask)
            case wire.Started(number, pid):
                self._started(number, pid, fds)
            case wire.Failed() as failed:
                _, answer = self._asked.pop(failed.id)
                if not answer.done():
                    answer.set_exception(failed.error())
            case wire.Ended(number, code):
                ended = self._running.pop(number)
                if not ended.done():
                    ended.set_result(code)
            case wire.Notified(number, sent):
                told = self._told.pop(number)
                if not told.done():
                    told.set_result(sent)

    def _started(self, number: int, pid: int, fds: Sequence[int]) -> None:
        request, answer = self._asked.pop(number)
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._running[number] = ended
        if fds:
            answer.set_result(Process(pid, request.argv, pidfd=fds[0], ended=ended))
        else:
            why = "there is no room for another file descriptor"
            answer.set_exception(CleatError(f"cannot watch {request.argv[0]}", why=why, hint="LimitNOFILE="))

    def _lost(self) -> None:
        """Everything that it had started and that still belonged to it ends too."""
        assert self._socket is not None
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._socket = None
        if self._hello is not None and not self._hello.done():
            _fail(self._hello, CleatError("the executor ended", hint=_HINT))
        asked, self._asked = self._asked, {}
        for request, answer in asked.values():
            if not answer.done():
                _fail(answer, _gone(request))
        running, self._running = self._running, {}
        for ended in running.values():
            if not ended.done():
                _fail(ended, CleatError("the executor ended, and nobody knows how this did"))
        unheard, self._told = self._told, {}
        for told in unheard.values():
            if not told.done():
                told.set_result(False)

    def close(self) -> None:
        if self._socket is not None:
            self._lost()


def _fail(future: asyncio.Future[Any], error: CleatError) -> None:
    """Without a complaint from the loop where nobody waits any more."""
    future.set_exception(error)
    future.exception()


def _gone(request: Request) -> ExecutorLost:
    return ExecutorLost(
        f"cannot run {request.argv[0]}",
        why="the executor ended",
        hint=_HINT,
    )
