# SPDX-License-Identifier: Apache-2.0
"""cleat@NAME.service: a unit of systemd's without a process of its own that shows and steers a container.

The unit is Type=notify with NotifyAccess=all. Its ExecStart= waits at the agent's socket (handle_socket.py); meanwhile
the agent speaks to PID 1 for it: MAINPID= is conmon in its foreign scope, READY=1 comes with the container's readiness.
Once the client is gone, conmon is the process whose credentials the agent uses (root may put any pid into
SCM_CREDENTIALS, unix(7)). When conmon ends, PID 1 sees its exit status, which is the payload's.

A container that came up by other means, or waits to be restarted, gets its handle started by the agent (`follow`), when
nothing is being launched: a handle costs a process, and that shall not delay containers. Such a start never
starts a container; it only joins in.

When conmon has ended, ExecStopPost= asks what comes next. A container that is restarted has its unit restarted by
systemd (Restart=always, RestartMode=direct): it is activating meanwhile and not failed. Where there is no restart, a
stop job for the unit that is ending forbids it one, as a stop by hand does (service.c, service_stop()), and it ends as
conmon has: failed or inactive.

What systemd does by itself and has to be told apart here: a unit whose main process ended well runs its ExecStop=
(service.c, service_enter_running()), which must not stop a container that is about to be restarted; `systemctl stop` of
a unit that is still starting runs no ExecStop= but ends the client; at shutdown the scopes are stopped in their order,
the handles in none.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
from collections import OrderedDict
from collections.abc import Coroutine, Mapping
from typing import Any

from agent.background import Background
from agent.container import verbs
from agent.container.supervisor import Supervisor
from agent.daemon.agent import Agent
from agent.daemon.handle_socket import Client, Verb
from agent.errors import CleatError, InvalidState, RuntimeFailed
from agent.flag import Flag
from agent.process import ProcessRef, release_memory
from agent.spawn import tool
from agent.status import State, Status
from agent.systemd.fd_store import own_name
from agent.systemd.text import one_line

logger = logging.getLogger(__name__)

_STOP_MARGIN_SEC = 20.0
_JOB_SEC = 90.0
_SHOWN_IN = frozenset({State.RUNNING, State.PAUSED, State.BACKOFF})
# How long systemd may take from the end of a main process to ExecStopPost=, and from there to ExecStart=.
_PATIENCE_SEC = 10.0
# Its parent ends at once, so it is PID 1's child like conmon, and PID 1 sees its end.
_STAND_IN = "sleep 120 >/dev/null 2>&1 & echo $!"
# So many handles at once that what they leave behind is worth collecting.
_MANY = 16


def handle_name(name: str) -> str:
    return f"cleat@{name}.service"


def _stored_kind(verb: str) -> str:
    """What connections of clients that wait are called in the fd store."""
    return f"handle-{verb}"


def container_name(unit: str) -> str:
    return unit.removeprefix("cleat@").removesuffix(".service")


class Handle:
    """What the agent knows of one unit.

    `shown` is the conmon that is its main process, `text` its status text, `waiting` the clients of its ExecStart=.
    `joining` is set while a start job of the agent's own is on its way; `called` when that has reached start().
    `expected` is set from the end of a main process on while systemd is about to run one of the unit's commands.
    `refused`: its start has just failed.
    `restart_too` are containers that a restart has stopped before this one; `stand_in` is the main process instead of a
    conmon that is being killed.
    """

    def __init__(self) -> None:
        self.shown = 0
        self.text: str | None = None
        self.waiting: set[int] = set()
        self.joining = False
        self.called = Flag()
        self.changed = Flag()
        self.expected: asyncio.TimerHandle | None = None
        self.refused = False
        self.restart_too: list[str] = []
        self.stand_in: ProcessRef | None = None

    def is_news(self, text: str) -> bool:
        """Whether the unit has another status text than this, which it has from now on."""
        before, self.text = self.text, text
        return text != before

    def expect_nothing(self) -> None:
        if self.expected is not None:
            self.expected.cancel()
            self.expected = None


class Handles:
    """Follows each container with its handle."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._handles: dict[str, Handle] = {}
        self._due: OrderedDict[str, None] = OrderedDict()
        self._wake = asyncio.Event()
        self._background = Background()

    @property
    def verbs(self) -> Mapping[str, Verb]:
        """What the unit's commands ask for."""
        return {
            "start": self.start, "join": self.join, "stop": self.stop, "reload": self.reload, "ended": self.ended
        }  # fmt: skip

    def left_waiting(self) -> list[tuple[str, str, int]]:
        """Clients that waited when the last agent ended: verb, container and the fd of the connection."""
        store = self._agent.host.fd_store
        return [(verb, name, fd) for verb in ("start", "join") for name, fd in store.take_all(_stored_kind(verb))]

    def _handle(self, name: str) -> Handle:
        handle = self._handles.get(name)
        if handle is None:
            handle = self._handles[name] = Handle()
        return handle

    def _tell_as(self, pid: int, *assignments: str) -> asyncio.Future[bool]:
        return self._agent.host.notify_as(pid, "\n".join(assignments))

    def _tell_status(self, handle: Handle, pid: int, text: str) -> None:
        if handle.is_news(text):
            self._tell_as(pid, f"STATUS={text}")

    # Calls of the unit's own commands

    async def start(self, client: Client, name: str) -> None:
        """For ExecStart=: start the container, tell systemd its main process and, when it is ready, so."""
        handle = self._handle(name)
        joins, handle.joining = handle.joining, False
        handle.called.set()
        await self._wait(client, name, joins=joins)

    async def join(self, client: Client, name: str) -> None:
        """The same for a start that only joins in, and did so before this agent was there."""
        await self._wait(client, name, joins=True)

    async def _wait(self, client: Client, name: str, *, joins: bool) -> None:
        pid, handle = client.pid, self._handle(name)
        handle.waiting.add(pid)
        handle.shown, handle.text, handle.refused = 0, None, False
        handle.expect_nothing()
        try:
            joins = joins or await self._is_restart(name)
            known = self._agent.supervisors.get(name)
            if known is not None and not known.ready:
                verb = "join" if joins else "start"
                self._agent.host.fd_store.store(own_name(_stored_kind(verb), pid, name), client.fd, poll=True)
                if joins:
                    self._tell_status(handle, pid, _progress(known.status()))
            elif known is None and joins:
                await self._forget_unit(name)
            await self._while_there(client, name, self._join(name) if joins else self._start(name))
        except CleatError as e:
            handle.refused = True
            await self._tell_as(pid, f"STATUS={one_line(e.detail)}")
            raise
        finally:
            handle.waiting.discard(pid)
            self._follow_again(name)
        await self._show(handle, pid, self._agent.supervisor(name).status())

    def _follow_again(self, name: str) -> None:
        """Its unit fails now; when the agent tries on, so does the unit."""
        supervisor = self._agent.supervisors.get(name)
        if supervisor is None:
            self._handles.pop(name, None)
        elif not supervisor.ready:
            self._consider(supervisor)

    async def _show(self, handle: Handle, pid: int, status: Status) -> None:
        """READY=1, with conmon as the main process; a container that has ended well has none to show."""
        handle.text = _text(status)
        main = []
        if status.conmon_pid:
            handle.shown = status.conmon_pid
            main = [f"MAINPID={status.conmon_pid}"]
        # Delivered before the client gets its answer and is gone.
        await self._tell_as(pid, *main, "READY=1", f"STATUS={handle.text}")

    async def _settled(self, name: str) -> None:
        """systemd may see conmon's end earlier: wait until the agent has acted on it."""
        handle, supervisor = self._handle(name), self._agent.supervisors.get(name)
        while supervisor is not None and supervisor.running is not None and not supervisor.running.conmon.is_alive():
            handle.changed.clear()
            await handle.changed.wait()

    async def _start(self, name: str) -> None:
        await self._settled(name)
        handle = self._handle(name)
        await self._agent.start_with_needs(name)
        again, handle.restart_too = handle.restart_too, []
        await self._agent.start_others(again)

    async def _join(self, name: str) -> None:
        """Wait as long as the container is on its way to be ready, over restarts too. Raises why it is not."""
        await self._settled(name)
        handle, supervisor = self._handle(name), self._agent.supervisor(name)
        while supervisor.is_active and not (supervisor.ready and supervisor.running is not None):
            handle.changed.clear()
            await handle.changed.wait()
        if supervisor.state is State.FAILED:
            raise RuntimeFailed(_reason(supervisor.status()), container=name)

    async def _while_there(self, client: Client, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Do the work; when the client goes meanwhile, `systemctl stop` has cancelled the start: stop the container."""
        task, gone = asyncio.create_task(work), asyncio.create_task(client.gone.wait())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return
        finally:
            gone.cancel()
            task.cancel()
        await self._cancelled(name)

    async def _cancelled(self, name: str) -> None:
        # At shutdown the scopes are stopped in their order.
        if not await self._agent.host.scopes.is_shutting_down():
            await self._agent.stop_with_dependents(name, None)
        raise InvalidState("its start was cancelled", container=name)

    async def stop(self, client: Client, name: str) -> None:
        """For ExecStop=: stop the container; systemd is asked for as much time as that may take."""
        scopes, unit, supervisor = self._agent.host.scopes, handle_name(name), self._agent.supervisors.get(name)
        if supervisor is None or not await scopes.main_pid(unit):
            # It is gone with its definition, or has ended by itself and may be about to restart.
            return
        first = [supervisor, *self._agent.followers(name)]
        needed = sum(one.definition.container.service.timeout_stop_sec for one in first)
        if math.isfinite(needed):
            extension = int((needed + _STOP_MARGIN_SEC) * 1e6)
            await self._tell_as(client.pid, f"EXTEND_TIMEOUT_USEC={extension}")
        if supervisor.running is not None and supervisor.running.unit and await scopes.is_shutting_down():
            await supervisor.stopped()
            return
        if await scopes.job_type(unit) == "restart":
            self._handle(name).restart_too = self._agent.dependents(name)
        await self._agent.stop_if_there(name)

    async def _is_restart(self, name: str) -> bool:
        """Whether systemd itself starts the unit again; a start by hand sets the count back (service.c)."""
        return await self._agent.host.scopes.restarts(handle_name(name)) > 0

    async def ended(self, client: Client, name: str) -> None:
        """For ExecStopPost=: have systemd not restart the unit, unless the container is restarted."""
        handle, supervisor, scopes = self._handle(name), self._agent.supervisors.get(name), self._agent.host.scopes
        await self._settled(name)
        handle.shown = 0
        handle.expect_nothing()
        if supervisor is None:
            self._drop(name)
        goes_on = supervisor is not None and supervisor.wanted and supervisor.is_active
        job = await scopes.job_type(handle_name(name))
        if handle.refused or job not in {"", "stop"}:
            return
        if job == "stop":
            # It came when conmon had ended already, so that no ExecStop= was run.
            if goes_on and not await scopes.is_shutting_down():
                await self._agent.stop_if_there(name)
        elif goes_on:
            self._expect(name)
        else:
            await scopes.forbid_restart(handle_name(name))

    def _expect(self, name: str) -> None:
        """systemd runs a command of the unit next; should it not, the agent starts the unit."""
        handle = self._handle(name)
        handle.expect_nothing()
        handle.expected = asyncio.get_running_loop().call_later(_PATIENCE_SEC, self._expected_in_vain, name)

    def _expected_in_vain(self, name: str) -> None:
        supervisor = self._agent.supervisors.get(name)
        if name in self._handles:
            self._handles[name].expected = None
        if supervisor is not None:
            self._consider(supervisor)

    async def reload(self, client: Client, name: str) -> None:
        await verbs.reload(self._agent.supervisor(name))

    # Following

    def changed(self, supervisor: Supervisor) -> None:
        """Pass on what a container's status says: progress to who waits, its text to the unit, a start to the queue."""
        name, status = supervisor.name, supervisor.status()
        handle = self._handles.get(name)
        if handle is not None:
            handle.changed.set()
            if not status.ready:
                for pid in handle.waiting:
                    self._tell_status(handle, pid, _progress(status))
            if handle.shown and handle.shown == status.conmon_pid:
                self._tell_status(handle, handle.shown, _text(status))
            elif handle.shown:
                handle.shown = 0
                self._expect(name)
            elif handle.stand_in is not None and not status.conmon_pid:
                handle.stand_in.send_signal(signal.SIGTERM)
                handle.stand_in = None
        self._consider(supervisor)

    def _consider(self, supervisor: Supervisor) -> None:
        if self._is_due(supervisor) and supervisor.name not in self._due:
            self._due[supervisor.name] = None
            self._wake.set()

    def _is_due(self, supervisor: Supervisor) -> bool:
        """Whether a container is up, or will be again, and its unit does not know."""
        if supervisor.state not in _SHOWN_IN or not supervisor.is_active:
            return False
        handle = self._handle(supervisor.name)
        is_shown = supervisor.running is not None and handle.shown == supervisor.running.conmon.pid
        if is_shown or handle.waiting or handle.joining or handle.expected:
            return False
        # One that ended while there was no agent is not up; what comes of it is told later.
        return supervisor.running is None or supervisor.running.conmon.is_alive()

    def removed(self, name: str) -> None:
        """The container is gone with its definition, and what its unit says of it with it."""
        if name in self._handles:
            self._drop(name)
            self._background.spawn(self._forget_unit(name))

    def _drop(self, name: str) -> None:
        handle = self._handles.pop(name, None)
        if handle is not None:
            handle.expect_nothing()
        self._due.pop(name, None)

    async def _forget_unit(self, name: str) -> None:
        """A unit that systemd is about to restart would find no container, and fail."""
        scopes, unit = self._agent.host.scopes, handle_name(name)
        try:
            await scopes.stop(unit)
            if name not in self._agent.supervisors:
                await scopes.reset_failed(unit)
        except CleatError as e:
            logger.debug("%s: %s", unit, e)

    async def before_kill(self, supervisor: Supervisor) -> None:
        """A stop that somebody asked for ends with SIGKILL. That is no failure of the unit: let its main process be
        one that ends well.
        """
        handle = self._handles.get(supervisor.name)
        if handle is None or supervisor.running is None or handle.shown != supervisor.running.conmon.pid:
            return
        result = await tool.run(["/bin/sh", "-c", _STAND_IN], timeout=2.0)
        stand_in = ProcessRef.of(int(result.stdout)) if result.stdout.strip().isdigit() else None
        if stand_in is not None and await self._tell_as(handle.shown, f"MAINPID={stand_in.pid}"):
            handle.stand_in, handle.shown = stand_in, 0

    async def run(self) -> None:
        """Start the handles that are due, while the agent lives."""
        await self.take_stock()
        while True:
            await self._wake.wait()
            self._wake.clear()
            followed = 0
            while self._due:
                await self._agent.idle.wait()
                if self._due:
                    await self._follow(self._due.popitem(last=False)[0])
                    followed += 1
            if followed >= _MANY:
                # Each was a conversation of its own, the last of what many starts at once leave behind.
                release_memory()

    async def take_stock(self) -> None:
        """See which units are active: they belong to containers that were taken over; those of all others are due."""
        try:
            units = await self._agent.host.scopes.list(["cleat@*.service"])
        except CleatError as e:
            logger.debug("%s", e)
            return
        active = {container_name(u.name) for u in units if u.active_state in {"active", "reloading", "deactivating"}}
        for name, supervisor in self._agent.supervisors.items():
            if name in active:
                self._handle(name).shown = supervisor.status().conmon_pid
            elif name in self._handles:
                self._handles[name].shown = 0
            self._consider(supervisor)

    async def _follow(self, name: str) -> None:
        """Have the unit started, and go on as soon as its client is here: it may wait for long."""
        supervisor = self._agent.supervisors.get(name)
        if supervisor is None or not self._is_due(supervisor):
            return
        handle = self._handle(name)
        handle.joining = True
        handle.called.clear()
        job = self._background.spawn(self._start_unit(name, handle))
        called = asyncio.create_task(handle.called.wait())
        try:
            await asyncio.wait({job, called}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            called.cancel()

    async def _start_unit(self, name: str, handle: Handle) -> None:
        """Twice, because the first job may merge with one that is about to fail."""
        scopes, unit = self._agent.host.scopes, handle_name(name)
        try:
            for _ in range(2):
                cancelled = False
                try:
                    cancelled = not await scopes.join_in(unit, deadline=_JOB_SEC)
                except CleatError as e:
                    logger.debug("%s: %s", unit, e)
                if handle.called.is_set():
                    return
                if cancelled:
                    # systemctl stop came before the unit's client: that was meant for the container.
                    if not await scopes.is_shutting_down():
                        await self._agent.stop_with_dependents(name, None)
                    return
            # Nobody came, so it was active all the time, or cannot be started (masked).
            handle.shown = await scopes.main_pid(unit)
        except CleatError as e:
            logger.debug("%s: %s", unit, e)
        finally:
            if not handle.called.is_set():
                handle.joining = False


def _reason(status: Status) -> str:
    return status.error or f"exit code {status.exit_code}"


def _text(status: Status) -> str:
    """One line for `systemctl status`: the payload's own words, else what is not plain from the unit's state."""
    text = status.status_text or ("unhealthy" if status.health == "unhealthy" else "")
    return one_line(text or (str(status.state) if status.state is State.PAUSED else ""))


def _progress(status: Status) -> str:
    """The same while the unit is starting."""
    if status.state is State.BACKOFF:
        return one_line(f"waits to be restarted: {_reason(status)}")
    return one_line(status.status_text or str(status.state))
