# SPDX-License-Identifier: Apache-2.0
"""Stopping a container that nobody uses: `stop_idle_sec`.

The kernel does not tell when the last connection of a listening socket ends, so its sockets are looked at a few times
within the period; the container is stopped when there was no connection each time, and no datagram in between. What
arrives meanwhile waits in the socket's queue and starts the container again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.container.listening import Listening
from agent.errors import CleatError
from agent.systemd import journal

_COUNTS = 4


class IdleWatch:
    """Calls `on_idle` once when nobody used it for the time that the definition sets."""

    def __init__(self, listening: Listening, on_idle: Callable[[], None]) -> None:
        self._listening = listening
        self._on_idle = on_idle
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._listening.on_demand and self._listening.stop_idle_sec < float("inf"):
            self._task = asyncio.create_task(self._watch(self._listening.stop_idle_sec / _COUNTS))

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _watch(self, interval: float) -> None:
        quiet = 0
        while quiet <= _COUNTS:
            try:
                quiet = 0 if await self._listening.is_used() else quiet + 1
            except CleatError as e:
                name = self._listening.container.name
                journal.send(journal.Event.FEATURE_MISSING, f"{name} is not stopped when idle", container=name, error=e)
                return
            if quiet <= _COUNTS:
                await asyncio.sleep(interval)
        self._on_idle()
