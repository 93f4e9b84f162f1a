# SPDX-License-Identifier: Apache-2.0
"""cleat@NAME.service: a unit of systemd's without a process of its own that shows and steers a container.

The unit is Type=notify with NotifyAccess=all. Its ExecStart= is a bus client that waits for StartHandle(); meanwhile the
agent speaks to PID 1 for it: MAINPID= is conmon in its foreign scope, READY=1 comes with the container's readiness. Once
the client is gone, conmon is the process whose credentials the agent uses (root may put any pid into SCM_CREDENTIALS).
"""

from __future__ import annotations

import asyncio
import logging

from agent.container.supervisor import Supervisor
from agent.daemon.agent import Agent
from agent.errors import CleatError
from agent.status import State
from agent.systemd.bus import Bus
from agent.systemd.notify import send_as
from agent.systemd.text import one_line

logger = logging.getLogger(__name__)

_STOP_TIMEOUT_USEC = 2**64 - 1


def handle_name(name: str) -> str:
    return f"cleat@{name}.service"


class Handles:
    """Follows each container with its handle, where systemd has one loaded and active."""

    def __init__(self, bus: Bus, agent: Agent) -> None:
        self._bus = bus
        self._agent = agent
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, caller: str, name: str) -> None:
        """For ExecStart=: start the container, tell systemd its main process and readiness."""
        pid = await self._bus.peer_pid(caller)
        supervisor = self._agent.supervisor(name)
        try:
            await self._agent.start_with_needs(name)
        except CleatError as e:
            send_as(pid, f"STATUS={one_line(str(e))}")
            raise
        status = supervisor.status()
        text = status.status_text or "running"
        send_as(pid, f"MAINPID={status.conmon_pid}\nREADY=1\nSTATUS={one_line(text)}")

    async def stop(self, caller: str, name: str) -> None:
        await self._agent.stop_with_dependents(name, None)

    async def reload(self, caller: str, name: str) -> None:
        await self._agent.supervisor(name).reload()

    def changed(self, supervisor: Supervisor) -> None:
        """The container's status text, for a handle whose main process is its conmon."""
        status = supervisor.status()
        if status.conmon_pid and status.state in {State.RUNNING, State.PAUSED} and status.status_text:
            send_as(status.conmon_pid, f"STATUS={one_line(status.status_text)}")
