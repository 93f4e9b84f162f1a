# SPDX-License-Identifier: Apache-2.0
"""Work that nobody waits for, and work that nobody may stop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """Holds tasks until they are done, which the event loop itself does not. They have to catch their own errors."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def completed(task: asyncio.Task[T]) -> T:
    """Wait for a task until it is done, whoever wants to stop the caller: for what a stop itself has to do."""
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    return task.result()
