# SPDX-License-Identifier: Apache-2.0
"""What asyncio.Event and asyncio.Queue do, for objects of which there are many.

Theirs begin with deques of 64 places each: six kilobytes for one container at rest.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class Flag:
    """asyncio.Event: tasks wait until it is set."""

    __slots__ = ("_is_set", "_waiters")

    def __init__(self) -> None:
        self._is_set = False
        self._waiters: list[asyncio.Future[None]] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def clear(self) -> None:
        self._is_set = False

    async def wait(self) -> None:
        if self._is_set:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            with suppress(ValueError):
                self._waiters.remove(waiter)


class Mailbox(Generic[T]):
    """asyncio.Queue for one reader."""

    __slots__ = ("_arrived", "_items")

    def __init__(self) -> None:
        self._items: list[T] = []
        self._arrived = Flag()

    def post(self, item: T) -> None:
        self._items.append(item)
        self._arrived.set()

    async def next(self) -> T:
        """The oldest item, as soon as there is one."""
        while not self._items:
            self._arrived.clear()
            await self._arrived.wait()
        return self._items.pop(0)

    def drain(self) -> list[T]:
        """All that nobody has read, which nobody will."""
        items, self._items = self._items, []
        return items
