# SPDX-License-Identifier: Apache-2.0
"""systemd wants a scope stopped (systemctl stop, the host's shutdown): the container is stopped by its own rules."""

from __future__ import annotations

import asyncio

from agent.background import Background
from agent.container import scope
from agent.container.events import StopRequested
from agent.container.supervisor import Supervisor
from agent.daemon.agent import Agent
from agent.errors import CleatError


class ScopeStops:
    """For all containers of an agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._background = Background()

    def requested(self, unit: str, *, is_signalled: bool = False) -> None:
        """Stop the container now. `is_signalled`: systemd sends its stop signal itself."""
        supervisor = self._of_unit(unit)
        if supervisor is None:
            return
        timeout = supervisor.definition.container.service.timeout_stop_sec
        supervisor.request_stop(StopRequested(timeout, why=f"stop of {unit}", is_signalled=is_signalled))

    def queued(self, unit: str) -> None:
        """The same for a job that may have to wait: at shutdown for what is ordered after the scope. systemd's own
        signal comes when it is the scope's turn; until then an end is one that somebody wanted.
        """
        supervisor = self._of_unit(unit)
        if supervisor is not None:
            supervisor.wanted = False
            self._background.spawn(self._stop_in_turn(supervisor, unit))

    async def _stop_in_turn(self, supervisor: Supervisor, unit: str) -> None:
        try:
            waits = await self._agent.host.scopes.is_shutting_down()
        except CleatError:
            waits = False
        for follower in self._agent.followers(supervisor.name) if waits else ():
            await follower.stopped()
        self.requested(unit, is_signalled=True)

    def _of_unit(self, unit: str) -> Supervisor | None:
        """The running container whose scope that is, or its conmon's own."""
        named = self._agent.supervisors.get(scope.container_name(unit))
        if named is not None:
            return named if named.running is not None else None
        running = ((s, s.running) for s in self._agent.supervisors.values() if s.running is not None)
        return next((s for s, found in running if unit in found.place.units), None)

    async def watch(self) -> None:
        """Hear of stop jobs for scopes whose Controller was a former connection."""
        async with asyncio.TaskGroup() as group:
            for supervisor in self._agent.supervisors.values():
                if supervisor.running is not None:
                    group.create_task(self._agent.host.scopes.watch_stop(supervisor.unit))
