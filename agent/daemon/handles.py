# SPDX-License-Identifier: Apache-2.0
"""cleat@NAME.service: a unit of systemd's without a process of its own that shows and steers a container.

The unit is Type=notify with NotifyAccess=all. Its ExecStart= is a bus client that waits for StartHandle(); meanwhile
the agent speaks to PID 1 for it: MAINPID= is conmon in its foreign scope, READY=1 comes with the container's readiness.
Once the client is gone, conmon is the process whose credentials the agent uses (root may put any pid into
SCM_CREDENTIALS, unix(7)). When conmon ends, PID 1 sees its exit status, which is the payload's.

A container that came up by other means gets its handle started afterwards, one at a time, when nothing is being
launched: a handle costs a bus client's run, and that shall not delay containers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict

from agent.container.supervisor import Supervisor
from agent.daemon.agent import Agent
from agent.errors import CleatError
from agent.status import State, Status
from agent.systemd.bus import Bus
from agent.systemd.notify import send_as
from agent.systemd.text import one_line

logger = logging.getLogger(__name__)

_STOP_MARGIN_SEC = 20.0


def handle_name(name: str) -> str:
    return f"cleat@{name}.service"


def container_name(unit: str) -> str:
    return unit.removeprefix("cleat@").removesuffix(".service")


class Handles:
    """Follows each container with its handle. `is_idle()` says when there is time for handles."""

    def __init__(self, bus: Bus, agent: Agent) -> None:
        self._bus = bus
        self._agent = agent
        self._shown: dict[str, int] = {}
        self._texts: dict[str, str] = {}
        self._waiting: dict[str, set[int]] = {}
        self._due: OrderedDict[str, None] = OrderedDict()
        self._wake = asyncio.Event()

    # Calls of the unit's own commands

    async def start(self, caller: str, name: str) -> None:
        """For ExecStart=: start the container, tell systemd its main process and, when it is ready, so."""
        pid = await self._bus.peer_pid(caller)
        self._waiting.setdefault(name, set()).add(pid)
        try:
            await self._agent.start_with_needs(name)
        except CleatError as e:
            send_as(pid, f"STATUS={one_line(e.detail)}")
            raise
        finally:
            self._waiting[name].discard(pid)
        status = self._agent.supervisor(name).status()
        if status.conmon_pid:
            self._shown[name] = status.conmon_pid
            send_as(pid, f"MAINPID={status.conmon_pid}\nREADY=1\nSTATUS={_text(status)}")
        else:
            # A oneshot that has ended well: there is no process to show.
            send_as(pid, f"READY=1\nSTATUS={_text(status)}")

    async def stop(self, caller: str, name: str) -> None:
        """For ExecStop=: stop the container; systemd is asked for as much time as that may take."""
        supervisor = self._agent.supervisor(name)
        pid = await self._bus.peer_pid(caller)
        needed = supervisor.definition.container.service.timeout_stop_sec + _STOP_MARGIN_SEC
        send_as(pid, f"EXTEND_TIMEOUT_USEC={int(needed * 1e6)}")
        await self._agent.stop_with_dependents(name, None)

    async def reload(self, caller: str, name: str) -> None:
        await self._agent.supervisor(name).reload()

    # Following

    def changed(self, supervisor: Supervisor) -> None:
        """Pass on what a container's status says: progress to who waits, its text to the unit, a start to the queue."""
        status = supervisor.status()
        for pid in self._waiting.get(status.name, ()):
            if not status.ready:
                send_as(pid, f"STATUS={_text(status)}")
        if status.state is not State.RUNNING or not status.ready:
            return
        if self._shown.get(status.name) == status.conmon_pid:
            self._show_text(status)
        elif status.name not in self._due and not self._waiting.get(status.name):
            self._due[status.name] = None
            self._wake.set()

    def _show_text(self, status: Status) -> None:
        text = _text(status)
        if self._texts.get(status.name) != text:
            self._texts[status.name] = text
            send_as(status.conmon_pid, f"STATUS={text}")

    def removed(self, name: str) -> None:
        for table in (self._shown, self._texts, self._due, self._waiting):
            table.pop(name, None)

    async def run(self) -> None:
        """Start the handles that are due, while the agent lives."""
        await self._take_stock()
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._due:
                await self._agent.idle.wait()
                name, _ = self._due.popitem(last=False)
                await self._follow_up(name)

    async def _take_stock(self) -> None:
        """Handles that are active already belong to containers that were taken over."""
        try:
            units = await self._agent.host.scopes.list(["cleat@*.service"])
        except CleatError as e:
            logger.debug("%s", e)
            return
        for unit in units:
            supervisor = self._agent.supervisors.get(container_name(unit.name))
            if unit.active_state in {"active", "reloading"} and supervisor is not None:
                self._shown[supervisor.name] = supervisor.status().conmon_pid
                self._due.pop(supervisor.name, None)

    async def _follow_up(self, name: str) -> None:
        supervisor = self._agent.supervisors.get(name)
        if supervisor is None or not supervisor.ready or self._shown.get(name) == supervisor.status().conmon_pid:
            return
        try:
            await self._agent.host.scopes.start_unit(handle_name(name), wait=True)
        except CleatError as e:
            logger.debug("%s: %s", handle_name(name), e)


def _text(status: Status) -> str:
    """One line for `systemctl status`: the payload's own words, else the state."""
    text = status.status_text or ("unhealthy" if status.health == "unhealthy" else str(status.state))
    return one_line(text)
