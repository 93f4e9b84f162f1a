# SPDX-License-Identifier: Apache-2.0
"""Starts on demand: the sockets of a container that does not run, and what their first connection does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from agent.container import outcome as outcomes
from agent.errors import InvalidState
from agent.systemd import journal

if TYPE_CHECKING:
    from agent.container.supervisor import Supervisor


class Demand:
    """Of one container. `start` is called when a connection shall start it."""

    def __init__(self, owner: Supervisor) -> None:
        self._owner = owner
        self._failures = 0
        self.start: Callable[[Supervisor], None] = type(owner).begin

    def open_sockets(self) -> None:
        """Have the definition's sockets listening. Raises DefinitionRejected."""
        was_armed = self._owner.listening.is_armed
        self._owner.listening.open(self._owner.definition.container)
        if was_armed:
            self.listen()

    def listen(self) -> None:
        """Wait for the first connection to start it; where nothing starts on demand, start now."""
        owner = self._owner
        if owner.is_retired:
            return
        owner.wanted = True
        if not owner.listening.on_demand:
            owner.begin()
        elif not owner.is_active:
            owner.listening.arm(self._start)
            owner.set_status_text(f"listening on {owner.listening.describe()}")

    def _start(self) -> None:
        owner = self._owner
        if owner.listening.trigger_limit_hit():
            error = InvalidState("was started on demand too often, giving up", hint=f"cleat start {owner.name}")
            owner.event(journal.Event.SOCKET_TRIGGER_LIMIT, f"{owner.name} {error.what}")
            owner.fail(error)
            return
        owner.event(journal.Event.SOCKET_TRIGGERED, f"{owner.name} starts on demand")
        self.start(owner)

    def listen_later(self, *, failed: bool) -> None:
        """Wait for connections again, when its task has ended: what starts on demand must find it at rest.

        A connection that waits would start it again at once, so a failure is followed by the delay of a restart.
        """
        if self._owner.wanted and self._owner.listening.on_demand:
            self._failures = self._failures + 1 if failed else 0
            service = self._owner.definition.container.service
            delay = outcomes.restart_delay(service, self._failures - 1) if failed else 0.0
            asyncio.get_running_loop().call_later(delay, self._listen_again)

    def _listen_again(self) -> None:
        if self._owner.wanted and not self._owner.is_active:
            self.listen()
