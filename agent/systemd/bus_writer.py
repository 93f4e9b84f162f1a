# SPDX-License-Identifier: Apache-2.0
"""The sending side of a dbus-next connection: at once, and without giving up when the socket's buffer is full.

The library's own waits for a turn of the loop before each message, and ends the connection at the first EAGAIN.
"""

from __future__ import annotations

import asyncio
from collections import deque

from dbus_next import Message
from dbus_next.aio import MessageBus


class Writer:
    """Takes the place of the library's writer; one for each connection."""

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus
        self._socket = bus._sock  # noqa: SLF001 there is no public way
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[memoryview, asyncio.Future[None] | None]] = deque()
        self._is_full = False

    @classmethod
    def replace(cls, bus: MessageBus) -> None:
        """For a bus that is connected and idle."""
        bus._writer = cls(bus)  # type: ignore[assignment]  # noqa: SLF001

    def schedule_write(self, message: Message, future: asyncio.Future[None] | None = None) -> None:
        """Send in order; `future` is done when the kernel has it, or when nobody will ever."""
        data = message._marshall(negotiate_unix_fd=False)  # noqa: SLF001
        self._queue.append((memoryview(data), future))
        if not self._is_full:
            self._write()

    def _write(self) -> None:
        try:
            while self._queue:
                data, future = self._queue[0]
                sent = self._socket.send(data)
                if sent < len(data):
                    self._queue[0] = data[sent:], future
                    continue
                self._queue.popleft()
                _resolve(future)
        except BlockingIOError:
            if not self._is_full:
                self._is_full = True
                self._loop.add_writer(self._socket, self._write)
            return
        except OSError as e:
            for _, future in self._queue:
                _resolve(future)
            self._queue.clear()
            self._loop.call_soon(self._bus._finalize, e)  # noqa: SLF001
        if self._is_full:
            self._is_full = False
            self._loop.remove_writer(self._socket)


def _resolve(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
