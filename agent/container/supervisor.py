# SPDX-License-Identifier: Apache-2.0
"""One container's task. It owns the state; everybody else asks it or sends it events.

A run is: launch (launch.py) -> follow events until conmon has ended -> settle the outcome (outcome.py) -> maybe wait
and run again. The task exists only while the container is wanted; at rest nothing of it is scheduled.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec

from agent import cgroup
from agent.container import launch, scope
from agent.container import outcome as outcomes
from agent.container import record as records
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
from agent.container.host import Host
from agent.container.launch import Running
from agent.container.outcome import Cause, Outcome
from agent.container.record import Record
from agent.definition.model import Definition, Notify, ServiceType
from agent.errors import CleatError, InvalidState, RuntimeFailed
from agent.oci.runtime import Runtime
from agent.status import State, Status
from agent.systemd import journal

logger = logging.getLogger(__name__)

_KILL_GRACE = 5.0


class Supervisor:
    """The life of the container `definition.name`. `on_change` is called after each change that a user could see."""

    def __init__(self, host: Host, definition: Definition, on_change: Callable[[Supervisor], None]) -> None:
        self.host = host
        self.definition = definition
        self.running: Running | None = None
        self.wanted = False
        self.state = State.INACTIVE
        self.last_id = ""
        self.ready = False
        self.status_text = ""
        self.health = ""
        self.health_output = ""
        self.restarts = 0
        self.last: Outcome | None = None
        self.started_at = 0.0
        self._attempt = 0
        self._starts: list[float] = []
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._stop: StopRequested | None = None
        self._stop_wanted = asyncio.Event()
        self._ready_waiters: list[asyncio.Future[None]] = []
        self._exit_waiters: list[asyncio.Future[int]] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._kill_cause: Cause | None = None
        self._stop_step = 0

    # Asked from outside

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def unit(self) -> str:
        return scope.scope_name(self.name)

    @property
    def is_active(self) -> bool:
        """Whether its task lives: it runs, is on its way up or down, or waits to be restarted."""
        return self._task is not None and not self._task.done()

    def status(self) -> Status:
        running, last = self.running, self.last
        return Status(
            name=self.name,
            id=running.id if running else self.last_id,
            state=self.state,
            ready=self.ready,
            pid=running.payload.pid if running else 0,
            conmon_pid=running.conmon.pid if running else 0,
            exit_code=last.code if last else None,
            oom_killed=bool(last and last.oom_killed),
            started_at=self.started_at,
            finished_at=last.finished_at if last else 0.0,
            restarts=self.restarts,
            status_text=self.status_text,
            health=self.health,
            health_output=self.health_output,
            unit=self.unit,
            definition=self.definition.container.source,
            image=self.definition.container.image,
            error=last.error if last else "",
            error_code=last.error_code if last else "",
            description=self.definition.container.description,
            log_path=running.log_path if running else "",
        )

    def begin(self) -> None:
        """Want it up, without waiting. Nothing happens when it is up or on its way; a wait for a restart is cut short."""
        self.wanted = True
        if self.state is State.BACKOFF:
            self._stop_wanted.set()
        if not self.is_active:
            self._attempt = 0
            self._stop = None
            self._stop_wanted.clear()
            self.state = State.STARTING
            self._task = asyncio.create_task(self._supervise(None), name=f"container {self.name}")

    async def start(self) -> None:
        """Start it and return when it is ready (a oneshot: when it has ended well). Raises the reason when it does not."""
        if self._stop is not None and self.is_active:
            await self.stopped()
        if self.ready and self.is_active:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._ready_waiters.append(waiter)
        self.begin()
        await waiter

    async def stop(self, timeout_sec: float | None = None) -> None:
        """Stop it and return when it is gone and tidied up. It stays stopped until somebody starts it."""
        self.wanted = False
        if not self.is_active:
            self._save()
            return
        limit = self._stop_timeout if timeout_sec is None else timeout_sec
        self.request_stop(StopRequested(limit))
        await self.stopped()

    async def stopped(self) -> None:
        """Wait until its task has ended, whatever the reason."""
        task = self._task
        if task is not None:
            await asyncio.wait({task})

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def wait(self) -> int:
        """The exit code of the run of the moment, or of the last one where none is under way."""
        if not self.is_active:
            if self.last is None:
                raise InvalidState("has not run yet", container=self.name, hint=f"cleat start {self.name}")
            return self.last.code
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._exit_waiters.append(waiter)
        return await waiter

    def kill(self, signum: int, *, everyone: bool = False) -> None:
        """Send a signal to the payload's first process, or to all of its processes. Raises InvalidState when it is down."""
        running = self._need_running("signal")
        if everyone:
            for pid in cgroup.processes(running.payload_cgroup):
                with suppress(OSError):
                    fd = os.pidfd_open(pid)
                    try:
                        if cgroup.contains(running.payload_cgroup, pid):
                            signal.pidfd_send_signal(fd, signum)
                    finally:
                        os.close(fd)
        elif not running.payload.send_signal(signum):
            raise InvalidState("its process has ended already", container=self.name)
        self._event(journal.Event.KILLED, f"signal {signal.Signals(signum).name} sent to {self.name}")

    async def pause(self) -> None:
        """Freeze all its processes. Raises InvalidState."""
        running = self._need_running("pause")
        if self.state is not State.RUNNING:
            raise InvalidState(f"cannot pause a container that is {self.state}", container=self.name)
        await running.runtime.pause(running.id)
        self._change(State.PAUSED)
        self._event(journal.Event.PAUSED, f"{self.name} paused")

    async def resume(self) -> None:
        """Let a paused container go on. Raises InvalidState."""
        running = self._need_running("resume")
        if self.state is not State.PAUSED:
            raise InvalidState(f"cannot resume a container that is {self.state}", container=self.name)
        await running.runtime.resume(running.id)
        self._change(State.RUNNING)
        self._event(journal.Event.RESUMED, f"{self.name} resumed")

    async def reload(self) -> None:
        """Ask the payload to read its configuration again: reload_signal. Raises InvalidState."""
        running = self._need_running("reload")
        signum = self.definition.container.service.reload_signal
        if not signum:
            raise InvalidState(
                "does not say how to reload it",
                container=self.name,
                key="service.reload_signal",
                hint="set reload_signal or reload_command",
            )
        running.payload.send_signal(signum)
        self._event(journal.Event.RELOADED, f"{self.name} asked to reload")

    def fail(self, error: CleatError) -> None:
        """Record that it could not even be tried to start."""
        if not self.is_active:
            self.last = msgspec.structs.replace(_failed_start(error), finished_at=time.time())
            self._change(State.FAILED)

    async def set_definition(self, definition: Definition, *, live: bool) -> None:
        """Take a new definition; with `live`, limits are applied to the running scope at once."""
        old, self.definition = self.definition, definition
        if live and self.running is not None and old.container.resources != definition.container.resources:
            changed = scope.limit_changes(old.container, definition.container)
            if changed:
                await self.host.scopes.set_properties(self.running.unit, changed)
        self._save()
        self._on_change(self)

    def request_stop(self, request: StopRequested) -> None:
        """Ask for a stop without waiting; a later request may only bring the deadline forward."""
        if request.cause is Cause.STOPPED:
            self.wanted = False
        if not self.is_active:
            return
        self._events.put_nowait(request)
        if request.cause is Cause.STOPPED:
            self._stop_wanted.set()

    def post(self, event: Event) -> None:
        if self.running is not None:
            self._events.put_nowait(event)

    def adopt(self, record: Record, runtime: Runtime | None) -> bool:
        """Take over what a former agent left: running, ended meanwhile (both: True), or at rest.

        What was half started is not taken over: it is cleared away and started anew.
        """
        self.wanted = record.wanted
        self.restarts, self._attempt = record.restarts, record.attempt
        self.started_at, self.last_id = record.started_at, record.id
        self.status_text, self.health = record.status_text, record.health
        if record.exit_code is not None:
            self.last = Outcome(
                code=record.exit_code,
                finished_at=record.finished_at,
                oom_killed=record.oom_killed,
                error=record.error,
                error_code=record.error_code,
            )
        at_rest = {State.EXITED, State.FAILED, State.INACTIVE}
        running = (
            launch.reopen(self.host, record, runtime) if runtime and record.state not in at_rest else None
        )
        if running is not None and record.state is not State.STARTING:
            self.state = State.PAUSED if record.state is State.PAUSED else State.RUNNING
            self.ready = record.ready
            self.running = running
            self._task = asyncio.create_task(self._supervise(running), name=f"container {self.name}")
            return True
        if running is not None:
            running.close()
        if record.state in at_rest:
            self.state = record.state
        return False

    async def leave(self) -> None:
        """Let go of the container without touching it: the agent ends."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self.running is not None:
            self.running.close()

    # The task

    async def _supervise(self, running: Running | None) -> None:
        adopted = running is not None
        while True:
            try:
                if running is None:
                    running = await self._launch()
                outcome = (
                    Outcome(code=outcomes.UNKNOWN_EXIT_CODE, cause=Cause.STOPPED)
                    if running is None
                    else await self._follow(running, adopted=adopted)
                )
            except CleatError as e:
                outcome = _failed_start(e)
                self.running = None
            if running is not None:
                await self._tidy(running)
            delay = self._settle(outcome)
            running, adopted = None, False
            if delay is None or await self._is_stopped_within(delay):
                return
            self.restarts += 1

    async def _launch(self) -> Running | None:
        """Start it; None when a stop came in between (everything is unwound then)."""
        self.last_id = ""
        self.ready, self.status_text, self.health, self.health_output = False, "", "", ""
        self._drop_events()
        self._starts = [*self._starts[-100:], time.monotonic()]
        self._change(State.STARTING, save=False)
        starting = asyncio.create_task(self._launch_in_turn())
        stopping = asyncio.create_task(self._stop_wanted.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not starting.done():
                starting.cancel()
        try:
            running = await starting
        except asyncio.CancelledError:
            if self._stop_wanted.is_set():
                self.running = None
                return None
            raise
        self.running = running
        self.started_at = time.time()
        return running

    async def _launch_in_turn(self) -> Running:
        async with self.host.launch_slots:
            return await launch.launch(self.host, self.definition, launch.Start(), self._saved_start)

    def _saved_start(self, running: Running) -> None:
        """Called by the launch when there is something to lose. Raises OSError: what cannot be recorded is not run."""
        self.running = running
        self.last_id = running.id
        records.write(self.host.paths.records, self._record())

    async def _follow(self, running: Running, *, adopted: bool) -> Outcome:
        """Handle events until conmon has ended, and say how it ended."""
        self.running = running
        loop = asyncio.get_running_loop()
        if running.pidfd >= 0:
            loop.add_reader(running.pidfd, self._conmon_ended, running.pidfd)
        else:
            self._events.put_nowait(Exited())
        self._kill_cause = None
        self._stop = None
        try:
            if adopted:
                self._resume_duties(running)
            else:
                self._begin_duties(running)
            while True:
                event = await self._events.get()
                if isinstance(event, Exited):
                    break
                self._handle(event, running)
        finally:
            if running.pidfd >= 0:
                loop.remove_reader(running.pidfd)
            self._cancel_timers()
        return launch.outcome_of(self.host, running, self._kill_cause)

    def _conmon_ended(self, pidfd: int) -> None:
        asyncio.get_running_loop().remove_reader(pidfd)
        self._events.put_nowait(Exited())

    def _begin_duties(self, running: Running) -> None:
        """A fresh run: count the time to readiness, or be ready now."""
        service = self.definition.container.service
        self._change(State.RUNNING, save=False)
        self._event(journal.Event.STARTED, f"{self.name} started")
        self._timer("runtime", service.runtime_max_sec, RuntimeMaxReached())
        if service.notify in {Notify.CONMON, Notify.IGNORE} and service.type is not ServiceType.ONESHOT:
            self._set_ready()
        else:
            self._timer("start", service.timeout_start_sec, StartTimedOut())
        self._save()

    def _resume_duties(self, running: Running) -> None:
        """An adopted run: timers go on from where they were."""
        service = self.definition.container.service
        age = time.time() - self.started_at
        self._timer("runtime", service.runtime_max_sec - age, RuntimeMaxReached())
        if not self.ready:
            self._timer("start", max(1.0, service.timeout_start_sec - age), StartTimedOut())
        self._on_change(self)

    def _handle(self, event: Event, running: Running) -> None:
        match event:
            case StopRequested():
                self._begin_stop(event, running)
            case StopOverdue():
                self._escalate(running)
            case StartTimedOut():
                limit = self.definition.container.service.timeout_start_sec
                self._begin_stop(self._own_stop(Cause.TIMEOUT, f"not ready within {limit:g} s"), running)
            case RuntimeMaxReached():
                self._begin_stop(self._own_stop(Cause.TIMEOUT, "RuntimeMaxSec= is over"), running)
            case WatchdogExpired():
                self._event(journal.Event.WATCHDOG, f"{self.name} missed its watchdog")
                self._begin_stop(self._own_stop(Cause.WATCHDOG, "watchdog"), running, signal.SIGABRT)
            case Notified() | HealthChanged():
                pass
            case _:
                raise AssertionError(event)

    # Stopping

    @property
    def _stop_timeout(self) -> float:
        return self.definition.container.service.timeout_stop_sec

    def _own_stop(self, cause: Cause, why: str) -> StopRequested:
        return StopRequested(self._stop_timeout, cause, why)

    def _begin_stop(self, request: StopRequested, running: Running, signum: int = 0) -> None:
        """First step: the stop signal. A second request while stopping may only shorten the wait."""
        if self._stop is not None:
            if request.cause is Cause.STOPPED and self._kill_cause is not Cause.STOPPED:
                self._kill_cause = Cause.STOPPED
            self._timer("stop", request.timeout_sec, StopOverdue(), only_earlier=True)
            return
        self._stop = request
        self._kill_cause = request.cause
        was_paused = self.state is State.PAUSED
        self._cancel_timers()
        self._change(State.STOPPING)
        self._event(
            journal.Event.STOPPING, f"{self.name} stopping" + (f": {request.why}" if request.why else "")
        )
        if request.timeout_sec > 0:
            running.payload.send_signal(signum or running.stop_signal)
            if was_paused:
                launch.thaw(running)
            self._timer("stop", request.timeout_sec, StopOverdue())
        else:
            self._escalate(running)

    def _escalate(self, running: Running) -> None:
        """Next step: SIGKILL to the first process, then to the whole cgroup, then to conmon too."""
        step, self._stop_step = self._stop_step, self._stop_step + 1
        match step:
            case 0:
                if self._stop is not None and self._stop.timeout_sec > 0:
                    limit = self._stop.timeout_sec
                    self._event(
                        journal.Event.STOP_SIGNAL_IGNORED,
                        f"{self.name} did not end within {limit:g} s of its stop signal, sending SIGKILL",
                    )
                running.payload.send_signal(signal.SIGKILL)
            case 1:
                cgroup.kill(running.payload_cgroup)
            case _:
                cgroup.kill(running.cgroup)
                running.conmon.send_signal(signal.SIGKILL)
        self._timer("stop", _KILL_GRACE, StopOverdue())

    # The end of a run

    async def _tidy(self, running: Running) -> None:
        """Remove all that belonged to the run. What cannot be removed is reported and left to the next agent start."""
        try:
            await launch.tidy(self.host, running)
        except CleatError as e:
            self._event(journal.Event.UNCLEAN_LEFTOVER, f"{self.name} left something behind: {e}", error=e)
        running.close()
        self.running = None

    def _settle(self, outcome: Outcome) -> float | None:
        """Record the outcome; seconds until the next start, or None when there is none."""
        service = self.definition.container.service
        now = time.time()
        outcome = outcome if outcome.finished_at else msgspec.structs.replace(outcome, finished_at=now)
        launched = outcome.cause is not Cause.START_FAILED and self.last_id != ""
        self.last = outcome
        self.ready, self._stop, self._stop_step = False, None, 0
        if outcome.cause is Cause.STOPPED or not self.wanted:
            self._change(State.INACTIVE)
            self._event(journal.Event.STOPPED, f"{self.name} stopped", exit_code=outcome.code)
            self._answer(outcome, InvalidState("was stopped", container=self.name))
            return None
        clean = outcome.is_clean(service)
        self._report_end(outcome, launched=launched)
        delay = outcomes.restart_delay(service, self._attempt)
        if launched and outcomes.was_stable(outcome.finished_at - self.started_at, delay):
            self._attempt, delay = 0, service.restart_sec
        restart = outcomes.should_restart(service, outcome)
        limited = restart and outcomes.start_limit_hit(service, self._starts, time.monotonic())
        if restart and not limited:
            self._attempt += 1
            self._change(State.BACKOFF)
            self._event(
                journal.Event.BACKOFF, f"{self.name} restarts in {delay:.3g} s", delay=delay
            )
        else:
            self._change(State.EXITED if clean and not limited else State.FAILED)
            if limited:
                self._event(journal.Event.START_LIMIT, f"{self.name} started too often, giving up")
        finished_well = clean and service.type is ServiceType.ONESHOT
        self._answer(outcome, None if finished_well else self._end_error(outcome))
        return delay if restart and not limited else None

    def _report_end(self, outcome: Outcome, *, launched: bool) -> None:
        kind = journal.Event.EXITED
        if not launched:
            kind = journal.Event.START_FAILED
        elif outcome.oom_killed:
            kind = journal.Event.OOM
        elif outcome.cause is Cause.LOST:
            kind = journal.Event.LOST
        text = f"{self.name} {'could not be started: ' if not launched else ''}{outcome.describe()}"
        self._event(kind, text, exit_code=outcome.code, outcome=outcome)

    def _end_error(self, outcome: Outcome) -> CleatError:
        if outcome.error:
            error = RuntimeFailed(outcome.error)
        else:
            error = RuntimeFailed(
                f"{outcome.describe()} before it was ready",
                container=self.name,
                hint=f"cleat logs {self.name}",
            )
        return error

    def _answer(self, outcome: Outcome, error: CleatError | None) -> None:
        """Let those who wait for readiness or the end have their answer."""
        for waiter in self._exit_waiters:
            if not waiter.done():
                waiter.set_result(outcome.code)
        self._exit_waiters.clear()
        for ready in self._ready_waiters:
            if ready.done():
                continue
            if error is None:
                ready.set_result(None)
            else:
                ready.set_exception(error)
        self._ready_waiters.clear()

    async def _is_stopped_within(self, delay: float) -> bool:
        """Wait for the restart delay; True when a stop ended it. A start during the wait only cuts it short."""
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._stop_wanted.wait()
                self._stop_wanted.clear()
        if self.wanted:
            return False
        self._change(State.INACTIVE)
        return True

    # Small things

    def _set_ready(self) -> None:
        if self.ready:
            return
        self.ready = True
        self._cancel_timer("start")
        self._event(journal.Event.READY, f"{self.name} ready")
        for waiter in self._ready_waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._ready_waiters.clear()
        self._on_change(self)

    def _need_running(self, verb: str) -> Running:
        if self.running is None or self.state is State.STARTING:
            raise InvalidState(
                f"cannot {verb} it: it is {self.state}", container=self.name, hint=f"cleat start {self.name}"
            )
        return self.running

    def _change(self, state: State, *, save: bool = True) -> None:
        self.state = state
        if save:
            self._save()
        self._on_change(self)

    def _save(self) -> None:
        try:
            records.write(self.host.paths.records, self._record())
        except OSError as e:
            self.host.report_unwritable(self.name, e)

    def _record(self) -> Record:
        running, last, definition = self.running, self.last, self.definition
        return Record(
            name=self.name,
            id=running.id if running else self.last_id,
            state=self.state,
            wanted=self.wanted,
            raw=definition.raw,
            source=definition.container.source,
            digest=definition.digest,
            unit=running.unit if running else "",
            cgroup=running.cgroup if running else "",
            conmon=running.conmon if running else None,
            payload=running.payload if running else None,
            runtime=running.runtime.name if running else "",
            ready=self.ready,
            started_at=self.started_at,
            finished_at=last.finished_at if last else 0.0,
            exit_code=last.code if last else None,
            oom_killed=bool(last and last.oom_killed),
            restarts=self.restarts,
            attempt=self._attempt,
            status_text=self.status_text,
            health=self.health,
            error=last.error if last else "",
            error_code=last.error_code if last else "",
            log_path=running.log_path if running else "",
            stop_signal=running.stop_signal if running else 0,
        )

    def _timer(self, name: str, delay: float, event: Event, *, only_earlier: bool = False) -> None:
        """Post `event` after `delay` seconds; infinite delays set nothing."""
        loop = asyncio.get_running_loop()
        if delay > 10**9:
            return
        when = loop.time() + max(0.0, delay)
        old = self._timers.get(name)
        if only_earlier and old is not None and not old.cancelled() and old.when() <= when:
            return
        self._cancel_timer(name)
        self._timers[name] = loop.call_at(when, self._events.put_nowait, event)

    def _cancel_timer(self, name: str) -> None:
        handle = self._timers.pop(name, None)
        if handle is not None:
            handle.cancel()

    def _cancel_timers(self) -> None:
        for handle in self._timers.values():
            handle.cancel()
        self._timers.clear()

    def _drop_events(self) -> None:
        while not self._events.empty():
            self._events.get_nowait()

    def _event(
        self,
        event: journal.Event,
        message: str,
        *,
        exit_code: int | None = None,
        error: CleatError | None = None,
        outcome: Outcome | None = None,
        delay: float | None = None,
    ) -> None:
        fields: dict[str, str | int | float] = {}
        if outcome is not None and outcome.error_code:
            fields["CODE"] = outcome.error_code
        if delay is not None:
            fields["DELAY_SEC"] = round(delay, 3)
        journal.send(
            event,
            message,
            container=self.name,
            container_id=self.running.id if self.running else self.last_id,
            unit=self.unit,
            exit_code=exit_code,
            error=error,
            **fields,  # type: ignore[arg-type]
        )


def _failed_start(error: CleatError) -> Outcome:
    return Outcome(code=error.exit_code, cause=Cause.START_FAILED, error=str(error), error_code=error.code)
