# SPDX-License-Identifier: Apache-2.0
"""One run of a container, from the start of its program to the end of its conmon: readiness, deadlines, stopping.

Events come in one queue and are handled in order; nothing here waits for anything else. What lies between two runs is
the supervisor's business.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING

import msgspec

from agent import cgroup
from agent.container import launch
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
from agent.container.health import HealthCheck
from agent.container.idle import IdleWatch
from agent.container.launch import Running
from agent.container.outcome import Cause, Outcome
from agent.container.timers import Timers
from agent.definition.model import HealthAction, Notify, Service, ServiceType
from agent.status import State
from agent.systemd import journal
from agent.systemd.notification import Notification, Phase
from agent.systemd.notify_socket import NotifySocket

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
        self.timers = Timers(self.post)
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._stop: StopRequested | None = None
        self._cause: Cause | None = None
        self._step = 0
        self._notify: NotifySocket | None = None
        self._health: HealthCheck | None = None
        self._idle = IdleWatch(owner.listening, self._became_idle)

    @property
    def _service(self) -> Service:
        return self.owner.definition.container.service

    def post(self, event: Event) -> None:
        self._events.put_nowait(event)

    @property
    def is_stopping(self) -> bool:
        return self._stop is not None

    async def follow(self, *, adopted: bool) -> Outcome:
        """Handle events until conmon has ended, and say how it ended."""
        loop, pidfd = asyncio.get_running_loop(), self.running.pidfd
        if pidfd >= 0:
            loop.add_reader(pidfd, self._conmon_ended, pidfd)
        else:
            self.post(Exited())
        try:
            self._open_notify_socket()
            if adopted:
                self._take_up()
            else:
                self._begin()
            while not isinstance(event := await self._events.get(), Exited):
                self._handle(event)
        finally:
            if pidfd >= 0:
                loop.remove_reader(pidfd)
            self.close()
        outcome = launch.outcome_of(self.owner.host, self.running, self._cause)
        if self._stop is not None and self._cause not in {None, Cause.STOPPED}:
            outcome = msgspec.structs.replace(outcome, error=f"stopped: {self._stop.why}", error_code=str(self._cause))
        return outcome

    def close(self) -> None:
        """Stop listening and watching; the container is not touched."""
        self.timers.cancel_all()
        if self._notify is not None:
            self._notify.close()
        if self._health is not None:
            self._health.close()
        self._idle.close()

    def _conmon_ended(self, pidfd: int) -> None:
        asyncio.get_running_loop().remove_reader(pidfd)
        self.post(Exited())

    def _begin(self) -> None:
        """A fresh run: be ready now, or count the time until the payload says so."""
        service = self._service
        self.owner.change(State.RUNNING, save=False)
        self.owner.event(journal.Event.STARTED, f"{self.owner.name} started")
        self.timers.set("runtime", service.runtime_max_sec, RuntimeMaxReached())
        self._set_watchdog(service.watchdog_sec)
        self._start_health()
        self._idle.start()
        if service.type is not ServiceType.ONESHOT and service.notify in {Notify.CONMON, Notify.IGNORE}:
            self.owner.set_ready()
        else:
            self.timers.set("start", service.timeout_start_sec, StartTimedOut())
        self.owner.save()

    def _take_up(self) -> None:
        """An adopted run: deadlines go on from where they were, a watchdog gets a whole new period."""
        service = self._service
        age = time.time() - self.owner.started_at
        self.timers.set("runtime", service.runtime_max_sec - age, RuntimeMaxReached())
        self._set_watchdog(self.owner.adopted_watchdog_sec or service.watchdog_sec)
        self._start_health()
        self._idle.start()
        if not self.owner.ready:
            self.timers.set("start", max(1.0, service.timeout_start_sec - age), StartTimedOut())
        self.owner.event(journal.Event.ADOPTED, f"{self.owner.name} taken over", priority=journal.Priority.DEBUG)

    def _handle(self, event: Event) -> None:
        match event:
            case StopRequested():
                self._begin_stop(event)
            case StopOverdue():
                self._escalate()
            case StartTimedOut():
                self._stop_by_itself(Cause.TIMEOUT, f"not ready within {self._service.timeout_start_sec:g} s")
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

    def _open_notify_socket(self) -> None:
        folder = launch.notify_folder(self.owner.host, self.owner.definition.container, self.running.id)
        if not folder:
            return
        name = launch.notify_fd_name(self.owner.name)
        self._notify = NotifySocket(
            folder,
            container=self.owner.name,
            accepts=self._is_from_container,
            on_notification=lambda message, fds: self.post(Notified(message, fds)),
            stored_fd=self.owner.host.fd_store.take(name),
        )
        self._notify.tracked.add(self.running.payload.pid)
        self.owner.host.fd_store.store(name, self._notify.fileno())

    def _is_from_container(self, pid: int) -> bool:
        return cgroup.contains(self.running.payload_cgroup, pid)

    def _notified(self, message: Notification, fds: tuple[int, ...]) -> None:
        owner = self.owner
        if message.status is not None and message.status != owner.status_text:
            owner.set_status_text(message.status)
        if message.watchdog_usec is not None:
            self._set_watchdog(message.watchdog_usec / _USEC)
            owner.save()
        if message.watchdog:
            self._set_watchdog(self.watchdog_sec)
        if message.watchdog_trigger:
            self.post(WatchdogExpired())
        if message.extend_timeout_usec is not None:
            self._extend(message.extend_timeout_usec / _USEC)
        if message.errno:
            owner.set_status_text(f"{owner.status_text} (errno {message.errno}: {os.strerror(message.errno)})".strip())
        if message.fd_store or message.fd_store_remove:
            owner.listening.keep_stored(message, fds)
        match message.phase:
            case Phase.READY:
                self._payload_ready()
            case Phase.RELOADING:
                owner.event(journal.Event.RELOADED, f"{owner.name} is reloading", priority=journal.Priority.DEBUG)
                owner.tell_handle(
                    "RELOADING=1", f"MONOTONIC_USEC={message.monotonic_usec or time.monotonic_ns() // 1000}"
                )
            case Phase.STOPPING:
                owner.tell_handle("STOPPING=1")
            case None:
                pass

    def _payload_ready(self) -> None:
        if self.owner.ready:
            self.owner.tell_handle("READY=1")
        elif self._service.notify is Notify.CONTAINER and self._service.type is not ServiceType.ONESHOT:
            self.timers.cancel("start")
            self.owner.set_ready()
            self.owner.save()

    def _extend(self, seconds: float) -> None:
        self.timers.extend("start", seconds, StartTimedOut())
        self.timers.extend("runtime", seconds, RuntimeMaxReached())
        self.timers.extend("stop", seconds, StopOverdue())

    def _set_watchdog(self, seconds: float) -> None:
        self.watchdog_sec = seconds
        if seconds > 0 and self._stop is None:
            self.timers.set("watchdog", seconds, WatchdogExpired())

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

    def pause_health(self, *, paused: bool) -> None:
        """A frozen container is not probed."""
        if self._health is not None:
            self._health.set_paused(paused=paused)

    def _health_changed(self, event: HealthChanged) -> None:
        owner, service = self.owner, self._service
        owner.set_health(event.health, event.output)
        if event.health == "healthy":
            owner.event(journal.Event.HEALTHY, f"{owner.name} is healthy")
            if service.notify is Notify.HEALTHY and not owner.ready:
                self.timers.cancel("start")
                owner.set_ready()
        elif event.health == "unhealthy":
            owner.event(journal.Event.UNHEALTHY, f"{owner.name} is unhealthy: {event.output or 'no output'}")
            self._act_on_unhealthy()
        owner.save()

    def _act_on_unhealthy(self) -> None:
        match self.owner.definition.container.health.on_failure:
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
        self.owner.event(journal.Event.IDLE, f"{self.owner.name} has had no connection for its stop_idle_sec")
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
        self.pause_health(paused=True)
        self.owner.change(State.STOPPING)
        why = f": {request.why}" if request.why else ""
        self.owner.event(journal.Event.STOPPING, f"{self.owner.name} stopping{why}")
        if request.timeout_sec > 0:
            self.running.payload.send_signal(signum or self.running.stop_signal)
            if was_paused:
                launch.thaw(self.running)
            self.timers.set("stop", request.timeout_sec, StopOverdue())
        else:
            self._escalate()

    def _escalate(self) -> None:
        """Next step: SIGKILL to the first process, then to the whole cgroup, then to conmon too."""
        step, self._step = self._step, self._step + 1
        match step:
            case 0:
                self._tell_ignored()
                self.running.payload.send_signal(signal.SIGKILL)
            case 1:
                cgroup.kill(self.running.payload_cgroup)
            case _:
                cgroup.kill(self.running.cgroup)
                self.running.conmon.send_signal(signal.SIGKILL)
        self.timers.set("stop", _KILL_GRACE, StopOverdue())

    def _tell_ignored(self) -> None:
        if self._stop is not None and self._stop.timeout_sec > 0:
            name, limit = self.owner.name, self._stop.timeout_sec
            text = f"{name} did not end within {limit:g} s of its stop signal, sending SIGKILL"
            self.owner.event(journal.Event.STOP_SIGNAL_IGNORED, text)
