# SPDX-License-Identifier: Apache-2.0
"""Named deadlines of one run, each posting an event when it passes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.container.events import Event

_FOREVER = 10**9


class Timers:
    def __init__(self, post: Callable[[Event], None]) -> None:
        self._post = post
        self._handles: dict[str, asyncio.TimerHandle] = {}

    def set(self, name: str, delay: float, event: Event, *, only_earlier: bool = False) -> None:
        """Post `event` in `delay` seconds instead of what was set under `name`; infinite delays set nothing.

        With `only_earlier` a deadline that is nearer stays.
        """
        if delay > _FOREVER:
            if not only_earlier:
                self.cancel(name)
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + max(0.0, delay)
        old = self._handles.get(name)
        if only_earlier and old is not None and old.when() <= when:
            return
        self.cancel(name)
        self._handles[name] = loop.call_at(when, self._fire, name, event)

    def extend(self, name: str, delay: float, event: Event) -> bool:
        """Let a deadline that is set be no earlier than `delay` seconds from now (EXTEND_TIMEOUT_USEC=).

        False when that changes nothing: none is set, or it is later anyway.
        """
        old = self._handles.get(name)
        if old is None or old.when() >= asyncio.get_running_loop().time() + delay:
            return False
        self.set(name, delay, event)
        return True

    def cancel(self, name: str) -> None:
        handle = self._handles.pop(name, None)
        if handle is not None:
            handle.cancel()

    def cancel_all(self) -> None:
        for handle in self._handles.values():
            handle.cancel()
        self._handles.clear()

    def _fire(self, name: str, event: Event) -> None:
        self._handles.pop(name, None)
        self._post(event)
