# SPDX-License-Identifier: Apache-2.0
"""All exec sessions of the agent: made, found by id, given to nobody but their owners, ended with their containers."""

from __future__ import annotations

import logging
import signal
from collections.abc import Coroutine, Iterable
from typing import Any

from agent.background import Background
from agent.container import session as sessions
from agent.container.command import parse_request
from agent.container.host import Host
from agent.container.session import Session
from agent.container.supervisor import Supervisor
from agent.errors import AccessDenied, CleatError, InvalidArgument, InvalidState
from agent.status import State

logger = logging.getLogger(__name__)

SESSIONS_MAX = 512


class Sessions:
    """The registry. `container_changed` is to be called at every change of a container's status."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._sessions: dict[str, Session] = {}
        self._coming: dict[str, int] = {}
        self._seen: dict[str, str] = {}
        self._background = Background()

    async def create(self, supervisor: Supervisor, options: str, owner: int) -> Session:
        """A new session in a running container. Raises InvalidArgument, InvalidState, and why conmon cannot."""
        request = parse_request(options)
        running = supervisor.running
        if running is None or supervisor.state is not State.RUNNING:
            hint = "resume" if supervisor.state is State.PAUSED else "start"
            raise InvalidState(
                f"cannot execute a command: it is {supervisor.state}",
                container=supervisor.name,
                hint=f"cleat {hint} {supervisor.name}",
            )
        self._require_room(supervisor.name, running.id)
        self._coming[running.id] = self._coming.get(running.id, 0) + 1
        try:
            made = await sessions.create(
                self._host, supervisor.definition.container, running, request, owner, self._forget
            )
        finally:
            self._coming[running.id] -= 1
            if not self._coming[running.id]:
                del self._coming[running.id]
        self._sessions[made.id] = made
        if supervisor.running is not running:
            await made.take_back("the container ended")
        return made

    def _require_room(self, name: str, container_id: str) -> None:
        present = sum(s.container_id == container_id for s in self._sessions.values())
        if present + self._coming.get(container_id, 0) >= SESSIONS_MAX:
            raise InvalidState(f"it has {SESSIONS_MAX} exec sessions already", container=name, hint="end some of them")

    def require_none(self, supervisor: Supervisor) -> None:
        """Raises InvalidState while commands run in the container: their clients cannot be part of a checkpoint."""
        running = supervisor.running
        if running is not None and any(s.container_id == running.id for s in self._sessions.values()):
            raise InvalidState("commands are being executed in it", container=supervisor.name, hint="end them first")

    def get(self, session: str, uid: int) -> Session:
        """The session, for its owner or root. Raises InvalidArgument for an unknown one, AccessDenied."""
        found = self._sessions.get(session)
        if found is None:
            raise InvalidArgument(
                "there is no such exec session", why=session[:64], hint="it has ended, or was not started in time"
            )
        if uid not in {0, found.owner}:
            raise AccessDenied("the exec session belongs to another user", container=found.container)
        return found

    async def kill(self, session: str, signum: int, uid: int) -> None:
        if signum not in signal.valid_signals():
            raise InvalidArgument(f"no signal has the number {signum}", hint="kill -l lists them")
        await self.get(session, uid).kill(signum)

    def _forget(self, session: Session) -> None:
        self._sessions.pop(session.id, None)

    # Coming and going of containers

    def container_changed(self, supervisor: Supervisor) -> None:
        """End the sessions of a run that is over; take over those of a run that a former agent began."""
        running = supervisor.running
        now = running.id if running is not None and supervisor.state.is_up else ""
        before = self._seen.get(supervisor.name, "")
        if now == before:
            return
        self._seen[supervisor.name] = now
        if not now:
            del self._seen[supervisor.name]
        if before:
            for session in [s for s in self._sessions.values() if s.container_id == before]:
                self._spawn(session.container_ended())
        if running is not None and now:
            self._take_over(supervisor)

    def adopt(self, supervisors: Iterable[Supervisor]) -> None:
        """What a former agent left in containers that are taken over."""
        for supervisor in supervisors:
            self.container_changed(supervisor)

    def _take_over(self, supervisor: Supervisor) -> None:
        assert supervisor.running is not None
        container = supervisor.definition.container
        for session, started in sessions.find_left(self._host, container, supervisor.running, self._forget):
            if session.id in self._sessions:
                continue
            if started and session.resume():
                self._sessions[session.id] = session
            else:
                self._spawn(session.clear())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._background.spawn(self._guarded(work))

    @staticmethod
    async def _guarded(work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except CleatError as e:
            logger.warning("%s", e)

    async def leave(self) -> None:
        """The agent ends: what has begun goes on, what has not is taken back."""
        for session in list(self._sessions.values()):
            await session.take_back("the agent ends")
