# SPDX-License-Identifier: Apache-2.0
"""One run of a container, from the start of its program to the end of its conmon: readiness, deadlines, stopping.

Events come in one queue and are handled in order; nothing here waits for anything else. What lies between two runs is
the supervisor's business.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from agent import cgroup
from agent.container import ended, unattended
from agent.container.events import (
    Event,
    Exited,
    HealthChanged,
    Notified,
    RuntimeMaxReached,
    StartTimedOut,
    StopOverdue,
    StopRequested,
    WatchdogExpired,
)
from agent.container.health import STARTING, HealthCheck
from agent.container.hearing import Hearing
from agent.container.idle import IdleWatch
from agent.container.outcome import Cause, Outcome
from agent.container.running import Running
from agent.container.timers import Timers
from agent.definition.model import HealthAction, Notify, Service, ServiceType
from agent.errors import CleatError
from agent.flag import Mailbox
from agent.status import State
from agent.systemd import journal
from agent.systemd.notification import Notification, Phase

if TYPE_CHECKING:
    from agent.container.supervisor import Supervisor

_KILL_GRACE = 5.0
_USEC = 1e6


class Run:
    """Follows `running` for `owner` until it has ended."""

    def __init__(self, owner: Supervisor, running: Running) -> None:
        self.owner = owner
        self.running = running
        self.watchdog_sec = 0.0
        self.start_until = 0.0
        self.timers = Timers(self.post)
        self._events: Mailbox[Event] = Mailbox()
        self._stop: StopRequested | None = None
        self._cause: Cause | None = None
        self._step = 0
        self._killing: asyncio.Task[None] | None = None
        self._hearing = Hearing(self)
        self._health: HealthCheck | None = None
        self._idle = IdleWatch(owner.listening, self._became_idle)

    @property
    def _service(self) -> Service:
        return self.owner.definition.container.service

    def post(self, event: Event) -> None:
        self._events.post(event)

    async def follow(self, *, adopted: bool) -> Outcome:
        """Handle events until conmon has ended, and say how it ended."""
        loop, owner, pidfd = asyncio.get_running_loop(), self.owner, self.running.pidfd
        if pidfd >= 0:
            loop.add_reader(pidfd, self._conmon_ended, pidfd)
        else:
            self.post(Exited())
        try:
            self.listen()
            if adopted:
                self._take_up()
            else:
                self._begin()
            while not isinstance(event := await self._events.next(), Exited):
                self._handle(event)
            self._hearing.forget()
            if pidfd < 0 and self._cause is None:
                await self._ended_unattended()
        finally:
            if pidfd >= 0:
                loop.remove_reader(pidfd)
            self.close()
        outcome = ended.outcome_of(owner.host, self.running, self._cause)
        if self._stop is not None and self._cause not in {None, Cause.STOPPED}:
            outcome = msgspec.structs.replace(outcome, error=f"stopped: {self._stop.why}", error_code=str(self._cause))
        return outcome

    async def _ended_unattended(self) -> None:
        """It ended while there was no agent. A stop that somebody asked systemd for meanwhile counts as one."""
        owner = self.owner
        if await unattended.was_stopped(owner.name, self.running.unit, owner.started_at):
            owner.wanted = False
            self._cause = Cause.STOPPED

    def listen(self) -> None:
        """Have the notify socket open, if it is not. Raises CleatError."""
        self._hearing.open()

    def abandon(self) -> None:
        """Its program was not run."""
        self._hearing.forget()
        self.close()

    def close(self) -> None:
        """Stop listening and watching; the container is not touched."""
        self.timers.cancel_all()
        self._hearing.close()
        for event in self._events.drain():
            for fd in event.fds if isinstance(event, Notified) else ():
                os.close(fd)
        if self._health is not None:
            self._health.close()
        self._idle.close()

    def _conmon_ended(self, pidfd: int) -> None:
        asyncio.get_running_loop().remove_reader(pidfd)
        self._hearing.drain()
        self.post(Exited())

    def _begin(self) -> None:
        """A fresh run: be ready now, or count the time until the payload says so."""
        service = self._service
        self.owner.change(State.RUNNING, save=False)
        self.owner.event(journal.Event.STARTED, f"{self.owner.name} started")
        self.timers.set("runtime", service.runtime_max_sec, RuntimeMaxReached())
        self.watchdog_sec = service.watchdog_sec
        self._start_health()
        self._idle.start()
        is_ready = service.notify in {Notify.CONMON, Notify.IGNORE} or self.running.is_restored
        if service.type is not ServiceType.ONESHOT and is_ready:
            self._set_ready()
        else:
            self._allow_start(service.timeout_start_sec)
        self.owner.save()

    def _take_up(self) -> None:
        """An adopted run: deadlines go on from where they were, a watchdog gets a whole new period."""
        service = self._service
        age = time.time() - self.owner.started_at
        self.timers.set("runtime", service.runtime_max_sec - age, RuntimeMaxReached())
        record, self.owner.adopted = self.owner.adopted, None
        assert record is not None
        self.watchdog_sec = record.watchdog_sec or service.watchdog_sec
        self._start_health()
        self._idle.start()
        if self.owner.ready:
            self._feed_watchdog()
        else:
            # What the payload said while there was no agent is read first.
            left = record.start_until - time.time() if record.start_until else math.inf
            self._allow_start(max(1.0, left))
        self.set_paused(paused=self.owner.state is State.PAUSED)
        if record.state is State.STOPPING or not self.owner.wanted:
            cause = Cause.TIMEOUT if self.owner.wanted else Cause.STOPPED
            self.post(StopRequested(service.timeout_stop_sec, cause, "its stop had begun"))
        self.owner.event(journal.Event.ADOPTED, f"{self.owner.name} taken over", priority=journal.Priority.DEBUG)

    def _handle(self, event: Event) -> None:
        match event:
            case StopRequested():
                self._begin_stop(event)
            case StopOverdue():
                self._escalate()
            case StartTimedOut():
                waited = time.time() - self.owner.started_at
                self._stop_by_itself(Cause.TIMEOUT, f"not ready within {waited:.3g} s")
            case RuntimeMaxReached():
                self.owner.event(journal.Event.RUNTIME_LIMIT, f"{self.owner.name} reached runtime_max_sec")
                self._stop_by_itself(Cause.TIMEOUT, "runtime_max_sec is over")
            case WatchdogExpired():
                self.owner.event(journal.Event.WATCHDOG, f"{self.owner.name} missed its watchdog")
                self._stop_by_itself(Cause.WATCHDOG, "watchdog", signal.SIGABRT)
            case Notified():
                self._notified(event.message, event.fds)
            case HealthChanged():
                self._health_changed(event)
            case _:
                raise AssertionError(event)

    # What the payload says: sd_notify(3)

    def _notified(self, message: Notification, fds: tuple[int, ...]) -> None:
        owner = self.owner
        self._hearing.take_text(message)
        if message.watchdog_usec is not None:
            self.watchdog_sec = message.watchdog_usec / _USEC
            self._hearing.save_soon()
        if message.watchdog or message.watchdog_usec is not None:
            self._feed_watchdog()
        if message.watchdog_trigger:
            self.post(WatchdogExpired())
        if message.extend_timeout_usec is not None:
            self._extend(message.extend_timeout_usec / _USEC)
        self._hearing.keep_fds(message, fds)
        match message.phase:
            case Phase.READY:
                self._payload_ready()
            case Phase.RELOADING:
                owner.event(journal.Event.RELOADED, f"{owner.name} is reloading", priority=journal.Priority.DEBUG)
                owner.tell_handle(
                    "RELOADING=1", f"MONOTONIC_USEC={message.monotonic_usec or time.monotonic_ns() // 1000}"
                )
            case Phase.STOPPING:
                self._payload_stops()
            case None:
                pass

    def _payload_ready(self) -> None:
        if self.owner.ready:
            self.owner.tell_handle("READY=1")
        elif self._service.notify is Notify.CONTAINER and self._service.type is not ServiceType.ONESHOT:
            self._set_ready()
            self.owner.save()

    def _payload_stops(self) -> None:
        """STOPPING=1: it ends by itself, within the time that a stop has (systemd.service(5), TimeoutStopSec=)."""
        if self._stop is None:
            self.timers.cancel_all()
            self.set_paused(paused=True)
            self.timers.set("stop", self._service.timeout_stop_sec, StopOverdue())
            self.owner.event(journal.Event.STOPPING, f"{self.owner.name} is stopping by itself")
            self.owner.change(State.STOPPING)
        self.owner.tell_handle("STOPPING=1")

    def _set_ready(self) -> None:
        self.start_until = 0.0
        self.timers.cancel("start")
        self.owner.set_ready()
        self._feed_watchdog()

    def _allow_start(self, seconds: float) -> None:
        """Be ready within `seconds` from now. The wall clock's time of it is for the next agent."""
        self.start_until = time.time() + seconds if seconds < math.inf else 0.0
        self.timers.set("start", seconds, StartTimedOut())

    def _extend(self, seconds: float) -> None:
        if self.timers.extend("start", seconds, StartTimedOut()):
            self.start_until = time.time() + seconds
            self._hearing.save_soon()
        self.timers.extend("runtime", seconds, RuntimeMaxReached())
        if self._step == 0 and self.timers.extend("stop", seconds, StopOverdue()):
            self.owner.tell_handle(f"EXTEND_TIMEOUT_USEC={int((seconds + _KILL_GRACE) * _USEC)}")

    def _feed_watchdog(self) -> None:
        """Count its period from now: once it is ready, as systemd does, and not while it stops or is frozen."""
        if self.watchdog_sec > 0 and self.owner.state is State.RUNNING and self.owner.ready:
            self.timers.set("watchdog", self.watchdog_sec, WatchdogExpired())

    # Health

    def _start_health(self) -> None:
        if self.owner.definition.container.health.command:
            self._health = HealthCheck(
                self.owner.host,
                self.owner.definition.container,
                self.running,
                self.post,
                started_at=self.owner.started_at,
                health=self.owner.health,
            )
            self._health.start()
            self.owner.health = self.owner.health or STARTING

    def set_paused(self, *, paused: bool) -> None:
        """A frozen container is not probed, and its watchdog waits."""
        if self._health is not None:
            self._health.set_paused(paused=paused)
        if paused:
            self.timers.cancel("watchdog")
        else:
            self._feed_watchdog()

    def _health_changed(self, event: HealthChanged) -> None:
        owner, service = self.owner, self._service
        owner.set_health(event.health, event.output)
        if event.health == "healthy":
            owner.event(journal.Event.HEALTHY, f"{owner.name} is healthy")
            if service.notify is Notify.HEALTHY and not owner.ready:
                self._set_ready()
        elif event.health == "unhealthy":
            owner.event(journal.Event.UNHEALTHY, f"{owner.name} is unhealthy: {event.output or 'no output'}")
            self._act_on_unhealthy(HealthAction.RESTART if event.at_startup else self._health_action)
        owner.save()

    @property
    def _health_action(self) -> HealthAction:
        return self.owner.definition.container.health.on_failure

    def _act_on_unhealthy(self, action: HealthAction) -> None:
        match action:
            case HealthAction.NONE:
                pass
            case HealthAction.RESTART:
                self._stop_by_itself(Cause.UNHEALTHY, "unhealthy")
            case HealthAction.STOP:
                self.post(StopRequested(self._service.timeout_stop_sec, why="unhealthy"))
                self.owner.wanted = False
            case HealthAction.KILL:
                self._cause = Cause.UNHEALTHY
                self.running.payload.send_signal(signal.SIGKILL)

    def _became_idle(self) -> None:
        """Nobody is connected: stop, and let the next connection start it again (it stays wanted)."""
        self.owner.event(journal.Event.IDLE, f"{self.owner.name} was not used for its stop_idle_sec")
        self.post(StopRequested(self._service.timeout_stop_sec, why="idle"))

    # Stopping

    def _stop_by_itself(self, cause: Cause, why: str, signum: int = 0) -> None:
        self._begin_stop(StopRequested(self._service.timeout_stop_sec, cause, why), signum)

    def _begin_stop(self, request: StopRequested, signum: int = 0) -> None:
        """First step: the stop signal. A request while it is stopping may only bring the deadline forward."""
        if self._stop is not None:
            if request.cause is Cause.STOPPED:
                self._cause = Cause.STOPPED
            self.timers.set("stop", request.timeout_sec, StopOverdue(), only_earlier=True)
            return
        self._stop = request
        self._cause = request.cause
        was_paused = self.owner.state is State.PAUSED
        self.timers.cancel_all()
        self.set_paused(paused=True)
        self.owner.change(State.STOPPING)
        why = f": {request.why}" if request.why else ""
        self.owner.event(journal.Event.STOPPING, f"{self.owner.name} stopping{why}")
        if request.timeout_sec > 0:
            if not request.is_signalled:
                self.running.payload.send_signal(signum or self.running.stop_signal)
            if was_paused:
                self.running.thaw()
            self.timers.set("stop", request.timeout_sec, StopOverdue())
        else:
            self._escalate()

    def _escalate(self) -> None:
        """Next step: SIGKILL to the first process, then to the whole cgroup, then to conmon too."""
        step, self._step = self._step, self._step + 1
        self._cause = self._cause or Cause.TIMEOUT
        match step:
            case 0:
                self._tell_ignored()
                self._killing = asyncio.create_task(self._kill_payload())
            case 1:
                cgroup.kill(self.running.payload_cgroup)
            case _:
                cgroup.kill(self.running.cgroup)
                self.running.conmon.send_signal(signal.SIGKILL)
        self.timers.set("stop", _KILL_GRACE, StopOverdue())

    async def _kill_payload(self) -> None:
        """A handle is told first that this end is one that somebody wanted."""
        if self._cause is Cause.STOPPED and self.owner.before_kill is not None:
            with suppress(CleatError):
                await self.owner.before_kill(self.owner)
        self.running.payload.send_signal(signal.SIGKILL)

    def _tell_ignored(self) -> None:
        if self._stop is not None and self._stop.timeout_sec > 0:
            name, limit = self.owner.name, self._stop.timeout_sec
            text = f"{name} did not end within {limit:g} s of its stop signal, sending SIGKILL"
            self.owner.event(journal.Event.STOP_SIGNAL_IGNORED, text)
