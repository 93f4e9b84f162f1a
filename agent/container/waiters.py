# SPDX-License-Identifier: Apache-2.0
"""Those who wait for a container to be ready, or to end."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from agent.errors import CleatError

T = TypeVar("T")


class Waiters:
    """Of one container, from one start to its end and on to the next."""

    def __init__(self) -> None:
        self._ready: list[asyncio.Future[None]] = []
        self._ended: list[asyncio.Future[int]] = []

    def for_ready(self) -> asyncio.Future[None]:
        """Done when the container is ready; fails with the reason why it is not going to be."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready.append(waiter)
        return waiter

    def for_end(self) -> asyncio.Future[int]:
        """The exit code of the run."""
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._ended.append(waiter)
        return waiter

    def ready(self) -> None:
        for waiter in _taken(self._ready):
            waiter.set_result(None)

    def ended(self, code: int, error: CleatError | None) -> None:
        """The run is over. `error` says why it did not become ready; without one it has done what it was to do."""
        for waiter in _taken(self._ended):
            waiter.set_result(code)
        if error is None:
            self.ready()
        else:
            for hopeful in _taken(self._ready):
                hopeful.set_exception(error)


def _taken(waiters: list[asyncio.Future[T]]) -> list[asyncio.Future[T]]:
    """All that still wait; nobody is left in the list."""
    found = [waiter for waiter in waiters if not waiter.done()]
    waiters.clear()
    return found
