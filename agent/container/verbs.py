# SPDX-License-Identifier: Apache-2.0
"""What can be asked of a container that runs: signals, pause and resume, reading its configuration again."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

from agent import cgroup
from agent.container.exec import run_command
from agent.container.running import Running
from agent.errors import InvalidState, RuntimeFailed
from agent.status import State
from agent.systemd import journal
from agent.systemd.text import clean

if TYPE_CHECKING:
    from agent.container.supervisor import Supervisor


def kill(supervisor: Supervisor, signum: int, *, everyone: bool = False) -> None:
    """Send a signal to the payload's first process, or to all processes. Raises InvalidState when it is down."""
    running = _need_running(supervisor, "signal")
    if everyone:
        cgroup.signal_all(running.payload_cgroup, signum, but=running.conmon.pid)
    elif not running.payload.send_signal(signum):
        raise InvalidState("its process has ended already", container=supervisor.name)
    supervisor.event(journal.Event.KILLED, f"signal {signal.Signals(signum).name} sent to {supervisor.name}")


async def pause(supervisor: Supervisor) -> None:
    """Freeze all its processes. Raises InvalidState."""
    running = _need_running(supervisor, "pause")
    if supervisor.state is not State.RUNNING:
        raise InvalidState(f"cannot pause a container that is {supervisor.state}", container=supervisor.name)
    await running.runtime.pause(running.id)
    if supervisor.run is not None:
        supervisor.run.set_paused(paused=True)
    supervisor.change(State.PAUSED)
    supervisor.event(journal.Event.PAUSED, f"{supervisor.name} paused")


async def resume(supervisor: Supervisor) -> None:
    """Let a paused container go on. Raises InvalidState."""
    running = _need_running(supervisor, "resume")
    if supervisor.state is not State.PAUSED:
        raise InvalidState(f"cannot resume a container that is {supervisor.state}", container=supervisor.name)
    await running.runtime.resume(running.id)
    supervisor.change(State.RUNNING)
    if supervisor.run is not None:
        supervisor.run.set_paused(paused=False)
    supervisor.event(journal.Event.RESUMED, f"{supervisor.name} resumed")


async def reload(supervisor: Supervisor) -> None:
    """Ask the payload to read its configuration again: reload_command or reload_signal.

    Raises InvalidState where the definition says neither, RuntimeFailed when the command fails.
    """
    running = _need_running(supervisor, "reload")
    service = supervisor.definition.container.service
    if service.reload_command:
        await _run_reload_command(supervisor, running, service.reload_command)
    elif service.reload_signal:
        running.payload.send_signal(service.reload_signal)
    else:
        raise InvalidState(
            "does not say how to reload it",
            container=supervisor.name,
            key="service.reload_signal",
            hint="set reload_signal or reload_command",
        )
    supervisor.event(journal.Event.RELOADED, f"{supervisor.name} asked to reload")


async def _run_reload_command(supervisor: Supervisor, running: Running, argv: Sequence[str]) -> None:
    limit = supervisor.definition.container.service.timeout_start_sec
    code, output = await run_command(supervisor.host, supervisor.definition.container, running, argv, limit)
    if code != 0:
        error = RuntimeFailed(
            f"reload_command exited with status {code}",
            container=supervisor.name,
            key="service.reload_command",
            why=clean(output.decode(errors="replace").strip(), 500),
        )
        supervisor.event(journal.Event.RELOAD_FAILED, "", error=error)
        raise error


def _need_running(supervisor: Supervisor, verb: str) -> Running:
    if supervisor.running is None or supervisor.state is State.STARTING:
        raise InvalidState(
            f"cannot {verb} it: it is {supervisor.state}",
            container=supervisor.name,
            hint=f"cleat start {supervisor.name}",
        )
    return supervisor.running
