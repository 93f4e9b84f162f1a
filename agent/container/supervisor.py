# SPDX-License-Identifier: Apache-2.0
"""One container's task. It owns the state; everybody else asks it or sends it events.

A run is: launch (launch.py) -> follow events until conmon has ended -> settle the outcome (outcome.py) -> maybe wait
and run again. The task exists only while the container is wanted; at rest nothing of it is scheduled.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec

from agent import process
from agent.container import ended, launch, scope, snapshot
from agent.container import outcome as outcomes
from agent.container import record as records
from agent.container.demand import Demand
from agent.container.events import StopRequested
from agent.container.host import Host
from agent.container.listening import Listening
from agent.container.outcome import Cause, Outcome
from agent.container.ports import ReservedPorts
from agent.container.record import Record
from agent.container.run import Run
from agent.container.running import Running, reopen
from agent.container.waiters import Waiters
from agent.definition.model import Definition, ServiceType
from agent.errors import CleatError, InvalidState, NoSuchContainer, RuntimeFailed
from agent.flag import Flag
from agent.oci.runtime import Runtime
from agent.status import State, Status
from agent.systemd import journal

logger = logging.getLogger(__name__)


class Supervisor:
    """The life of the container `definition.name`. `on_change` is called after each change that a user could see."""

    def __init__(self, host: Host, definition: Definition, on_change: Callable[[Supervisor], None]) -> None:
        self.host = host
        self.definition = definition
        self.running: Running | None = None
        self.wanted = False
        self.is_retired = False
        """Its definition is gone: nobody can start it any more."""
        self.state = State.INACTIVE
        self.last_id = ""
        self.ready = False
        self.status_text = ""
        self.health = ""
        self.health_output = ""
        self.restarts = 0
        self.last: Outcome | None = None
        self.started_at = 0.0
        self.attempt = 0
        self._starts: list[float] = []
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None
        self.run: Run | None = None
        self.before_kill: Callable[[Supervisor], Awaitable[None]] | None = None
        self.adopted: Record | None = None
        self.listening = Listening(definition.container, host.fd_store)
        self.listening.kept.on_change = self.save
        self.demand = Demand(self)
        self.ports = ReservedPorts(definition.name, host.fd_store)
        self.before_program: Callable[[Running], None] = lambda _: None
        self._leftovers = ended.Leftovers(host, definition.name)
        self._stop_wanted = Flag()
        self._wait_over = Flag()
        self._waiters = Waiters()

    # Asked from outside

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def unit(self) -> str:
        return scope.scope_name(self.name, self.host.scope_prefix)

    @property
    def is_active(self) -> bool:
        """Whether its task lives: it runs, is on its way up or down, or waits to be restarted."""
        return self._task is not None and not self._task.done()

    def status(self) -> Status:
        return snapshot.status_of(self)

    def begin(self) -> None:
        """Want it up, without waiting. Nothing happens when it is on its way; a wait for a restart is cut short."""
        if self.is_retired:
            return
        self.wanted = True
        self._wait_over.set()
        if not self.is_active:
            self.attempt = 0
            self.listening.disarm()
            self._stop_wanted.clear()
            self.change(State.STARTING, save=False)
            self._task = asyncio.create_task(self._supervise(None), name=f"container {self.name}")

    async def start(self) -> None:
        """Start it; return when it is ready (a oneshot: when it has ended well). Raises the reason it does not."""
        if self.is_active and self._stop_wanted.is_set() and self.state is not State.BACKOFF:
            await self.stopped()
        if self.is_retired:
            raise NoSuchContainer("its definition is gone", container=self.name)
        if self.ready and self.is_active:
            return
        waiter = self._waiters.for_ready()
        self.begin()
        await waiter

    async def stop(self, timeout_sec: float | None = None) -> None:
        """Stop it and return when it is gone and tidied up. It stays stopped until somebody starts it."""
        self.wanted = False
        if not self.is_active:
            self.listening.disarm()
            self.set_status_text("")
            await self._leftovers.tidy_again()
            if not self.is_retired:
                self.save()
            return
        limit = self._stop_timeout if timeout_sec is None else timeout_sec
        self.request_stop(StopRequested(limit))
        await self.stopped()

    @property
    def has_ended_unseen(self) -> bool:
        """It was taken over when it had ended already; how, is being found out."""
        return self.running is not None and self.running.pidfd < 0

    @property
    def is_ending(self) -> bool:
        """It was to stop and has: what is left of its run is being removed, or will be at once."""
        running = self.running
        return not self.wanted and running is not None and running.pidfd >= 0 and process.has_ended(running.pidfd)

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
        if not self.is_active or (self.state is State.BACKOFF and self.last is not None):
            if self.last is None:
                raise InvalidState("has not run yet", container=self.name, hint=f"cleat start {self.name}")
            return self.last.code
        return await self._waiters.for_end()

    def fail(self, error: CleatError) -> None:
        """Record that it could not even be tried to start."""
        if not self.is_active:
            self.last = msgspec.structs.replace(_failed_start(error), finished_at=time.time())
            self.change(State.FAILED)

    async def set_definition(self, definition: Definition, *, live: bool) -> None:
        """Take a new definition; with `live`, limits are applied to the running scope at once."""
        old, self.definition = self.definition, definition
        if live and self.running is not None and old.container.resources != definition.container.resources:
            changed = scope.limit_changes(old.container, definition.container)
            if changed:
                await self.host.scopes.set_properties(self.running.unit, changed)
        self.save()
        self._on_change(self)

    def read_again(self, definition: Definition) -> None:
        """The definition has been read again, and is the same: it need not be held twice."""
        self.definition = definition
        self.listening.container = definition.container

    def request_stop(self, request: StopRequested) -> None:
        """Ask for a stop without waiting; a later request may only bring the deadline forward."""
        self.wanted = False
        self.listening.disarm()
        if not self.is_active:
            return
        if self.run is not None:
            self.run.post(request)
        self._stop_wanted.set()
        self._wait_over.set()

    def adopt(self, record: Record, runtime: Runtime | None) -> bool:
        """Take over what a former agent left: running, ended meanwhile (both: True), or at rest.

        What was half started is not taken over: it is cleared away and started anew.
        """
        self.wanted = record.wanted
        self.restarts, self.attempt = record.restarts, record.attempt
        self.started_at, self.last_id = record.started_at, record.id
        self.status_text, self.health = record.status_text, record.health
        self.last = record.outcome()
        self.listening.kept.take_back(record.stored_fds)
        if record.is_at_rest:
            self.state = record.state
            return False
        if runtime is None or record.state is State.STARTING:
            return False
        running = reopen(self.host, record, runtime)
        if running is None:
            return False
        self.state = State.PAUSED if record.state is State.PAUSED else State.RUNNING
        self.ready = record.ready
        self.running, self.adopted = running, record
        if self.host.config.reserve_ports:
            self.ports.adopt(self.definition.container)
        self._task = asyncio.create_task(self._supervise(running), name=f"container {self.name}")
        return True

    async def leave(self) -> None:
        """Let go of the container without touching it: the agent ends."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self.running is not None:
            self.running.close()
        self.listening.release()
        self.ports.leave()

    # The task

    async def _supervise(self, running: Running | None) -> None:
        adopted = running is not None
        while True:
            outcome = await self._run_once(running, adopted=adopted)
            delay = self._settle(outcome)
            running, adopted = None, False
            if delay is None:
                break
            if await self._is_stopped_within(delay):
                return
            self.restarts += 1
        self.demand.listen_later(failed=not outcome.is_clean(self.definition.container.service))

    async def _run_once(self, running: Running | None, *, adopted: bool) -> Outcome:
        """Launch (unless it runs already), follow to the end, tidy up."""
        try:
            running = running or await self._launch()
            if running is None:
                return Outcome(code=outcomes.UNKNOWN_EXIT_CODE, cause=Cause.STOPPED)
            run = self.run = self.run or Run(self, running)
            if self._stop_wanted.is_set():
                run.post(StopRequested(self._stop_timeout))
            try:
                outcome = await run.follow(adopted=adopted)
            finally:
                self.run = None
        except Exception as e:
            # Whatever it is, one container's failure must end as that container's state.
            if not isinstance(e, CleatError):
                logger.exception("%s", self.name)
            error = e if isinstance(e, CleatError) else CleatError("the agent met a fault of its own", why=repr(e))
            if running is None:
                self.running = None
                return _failed_start(error)
            outcome = msgspec.structs.replace(_failed_start(error), cause=Cause.LOST)
        await self._tidy(running)
        return outcome

    async def _launch(self) -> Running | None:
        """Start it; None when a stop came in between (everything is unwound then)."""
        self.last_id = ""
        self.ready, self.status_text, self.health, self.health_output = False, "", "", ""
        self._starts = [*self._starts[-100:], time.monotonic()]
        starting = asyncio.create_task(self._fetch_and_launch())
        stopping = asyncio.create_task(self._stop_wanted.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not starting.done():
                starting.cancel()
                await asyncio.wait({starting})
                # Told below to who stopped it; where the agent ends, to nobody.
                _ = starting.cancelled() or starting.exception()
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

    async def _fetch_and_launch(self) -> Running:
        """The image first, outside of every start timeout; then the start itself, when it is its turn."""
        container = self.definition.container
        await self._leftovers.tidy_again()
        if container.image:
            self.change(State.PULLING, save=False)
            await self.host.images.ensure(container, self.set_status_text)
            self.status_text = ""
        self.change(State.STARTING, save=False)
        if not self.listening.is_open:
            self.demand.open_sockets()
        self.listening.make_blocking()
        if self.host.config.reserve_ports:
            self.ports.reserve(container)
        start = launch.Start(listen_fds=self.listening.fds, listen_fdnames=self.listening.names)
        async with self.host.launch_slots:
            try:
                return await launch.launch(self.host, self.definition, start, self._saved_start)
            except BaseException:
                if self.run is not None:
                    self.run.abandon()
                    self.run = None
                raise

    def _saved_start(self, running: Running) -> None:
        """Called by the launch when there is something to lose. Raises OSError: what cannot be recorded is not run.

        From here on the payload is listened to: it may have something to say before the runtime's `start` is back.
        """
        self.running = running
        self.last_id = running.id
        self.run = Run(self, running)
        self.run.listen()
        records.write(self.host.paths.records, snapshot.record_of(self))
        self.before_program(running)

    @property
    def _stop_timeout(self) -> float:
        return self.definition.container.service.timeout_stop_sec

    # The end of a run

    async def _tidy(self, running: Running) -> None:
        """Remove all that belonged to the run. What cannot be removed is reported and tried again at the next start."""
        try:
            await self._leftovers.tidy(running)
        except CleatError as e:
            self.event(journal.Event.UNCLEAN_LEFTOVER, f"{self.name} left something behind: {e}", error=e)
        try:
            await self.host.scopes.unwatch_stop(running.unit)
        except CleatError as e:
            logger.debug("%s", e)
        running.close()
        self.running = None

    def _settle(self, outcome: Outcome) -> float | None:
        """Record the outcome; seconds until the next start, or None when there is none."""
        self.ports.release()
        service = self.definition.container.service
        now = time.time()
        outcome = outcome if outcome.finished_at else msgspec.structs.replace(outcome, finished_at=now)
        launched = outcome.cause is not Cause.START_FAILED and self.last_id != ""
        self.last = outcome
        self.ready = False
        if outcome.cause is Cause.STOPPED or not self.wanted:
            self.change(State.INACTIVE)
            self.event(journal.Event.STOPPED, f"{self.name} stopped", exit_code=outcome.code)
            self._waiters.ended(outcome.code, InvalidState("was stopped", container=self.name))
            return None
        clean = outcome.is_clean(service)
        self._report_end(outcome, launched=launched)
        uptime = outcome.finished_at - self.started_at if launched else None
        verdict = outcomes.judge(
            service, outcome, attempt=self.attempt, uptime=uptime, starts=self._starts, now=time.monotonic()
        )
        self.attempt = verdict.attempt
        if verdict.delay is not None:
            self.change(State.BACKOFF)
            text = f"{self.name} restarts in {verdict.delay:.3g} s"
            self.event(journal.Event.BACKOFF, text, delay=verdict.delay)
        else:
            self.change(State.EXITED if clean and not verdict.start_limit_hit else State.FAILED)
            if verdict.start_limit_hit:
                self.event(journal.Event.START_LIMIT, f"{self.name} started too often, giving up")
        finished_well = clean and service.type is ServiceType.ONESHOT
        self._waiters.ended(outcome.code, None if finished_well else self._end_error(outcome))
        return verdict.delay

    def _report_end(self, outcome: Outcome, *, launched: bool) -> None:
        kind = journal.Event.EXITED
        if not launched:
            kind = journal.Event.START_FAILED
        elif outcome.oom_killed:
            kind = journal.Event.OOM
        elif outcome.cause is Cause.LOST:
            kind = journal.Event.LOST
        text = f"{self.name} {'could not be started: ' if not launched else ''}{outcome.describe()}"
        self.event(kind, text, exit_code=outcome.code, outcome=outcome)

    def _end_error(self, outcome: Outcome) -> CleatError:
        if outcome.error:
            return RuntimeFailed(outcome.error, container=self.name)
        what = f"{outcome.describe()} before it was ready"
        return RuntimeFailed(what, container=self.name, hint=f"cleat logs {self.name}")

    async def _is_stopped_within(self, delay: float) -> bool:
        """Wait for the restart delay; True when a stop ended it. A start during the wait only cuts it short."""
        self._wait_over.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._wait_over.wait()
        if self.wanted:
            # Whoever stopped it meanwhile was overruled by whoever started it.
            self._stop_wanted.clear()
            self.change(State.STARTING, save=False)
            return False
        self.change(State.INACTIVE)
        return True

    # Small things

    def set_ready(self) -> None:
        if self.ready:
            return
        self.ready = True
        self.event(journal.Event.READY, f"{self.name} ready")
        self._waiters.ready()
        self._on_change(self)

    def set_status_text(self, text: str) -> None:
        self.status_text = text
        self._on_change(self)

    def set_health(self, health: str, output: str) -> None:
        self.health, self.health_output = health, output
        self._on_change(self)

    def tell_handle(self, *assignments: str) -> None:
        """Pass a message of the payload on to its cleat@NAME.service."""
        if self.running is not None:
            self.host.notify_as(self.running.conmon.pid, "\n".join(assignments))

    def change(self, state: State, *, save: bool = True) -> None:
        self.state = state
        if save:
            self.save()
        self._on_change(self)

    def save(self) -> None:
        try:
            records.write(self.host.paths.records, snapshot.record_of(self))
        except OSError as e:
            self.host.report_unwritable(self.name, e)
        else:
            self.host.record_stored(self.name)

    def event(
        self,
        event: journal.Event,
        message: str,
        *,
        priority: journal.Priority | None = None,
        exit_code: int | None = None,
        error: CleatError | None = None,
        outcome: Outcome | None = None,
        delay: float | None = None,
    ) -> None:
        """One journal entry about this container."""
        fields: dict[str, str | int | float] = {}
        if self.status_text:
            fields["STATUS_TEXT"] = self.status_text
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
            priority=priority,
            exit_code=exit_code,
            error=error,
            **fields,
        )


def _failed_start(error: CleatError) -> Outcome:
    return Outcome(code=error.exit_code, cause=Cause.START_FAILED, error=error.detail, error_code=error.code)
