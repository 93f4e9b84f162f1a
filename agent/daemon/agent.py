# SPDX-License-Identifier: Apache-2.0
"""The containers of this host: definitions in, supervisors by name, the plan between the two carried out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress

import msgspec

from agent.background import Background
from agent.container import record as records
from agent.container.host import Host
from agent.container.running import Running
from agent.container.supervisor import Supervisor
from agent.definition.check import check, check_refused
from agent.definition.graph import predecessors
from agent.definition.load import Loader
from agent.definition.model import Container, Definition, Diagnostic, Loaded
from agent.errors import CleatError, DefinitionRejected, InvalidState, NoSuchContainer
from agent.reconcile import apply as applying
from agent.reconcile import related
from agent.reconcile.plan import Action, Actual, plan
from agent.status import State, Status
from agent.systemd import journal

_FINISH_DEADLINE = 10.0
logger = logging.getLogger(__name__)


class Agent:
    """Owns the supervisors. `on_change(name)` is called whenever a container's status changed."""

    def __init__(self, host: Host, loader: Loader) -> None:
        self.host = host
        self.loader = loader
        self.loaded = Loaded(definitions={})
        self._launching: set[str] = set()
        self._asked_for: set[str] = set()
        """Names that somebody starts right now: they do not wait for a first connection."""
        self._called_off: set[str] = set()
        """Those among them that somebody stopped before it was their turn."""
        self._background = Background()
        self.before_kill: Callable[[Supervisor], Awaitable[None]] | None = None
        """Called before a stop that was asked for ends with SIGKILL."""
        host.payload_pid = self._payload_pid
        host.running_id = self._running_id
        self._needed: frozenset[str] | None = None
        host.is_needed = lambda name: self._needed is None or name in self._needed
        self.supervisors: dict[str, Supervisor] = {}
        self.on_change: list[Callable[[Supervisor], None]] = []
        self.on_loaded: list[Callable[[], None]] = []
        self.on_removed: list[Callable[[str], None]] = []
        self._reported: frozenset[str] = frozenset()
        self._reconciling = asyncio.Lock()
        self.idle = asyncio.Event()
        """Set while no container is on its way up (launching, not: waiting to be ready)."""

    # Definitions

    def load(self) -> Loaded:
        """Read all definitions, with the host checks for those that are new or changed, and tell what was refused."""
        loaded = self.loader.load(name for name in self.supervisors if "@" in name)
        problems = list(loaded.diagnostics)
        good = dict(loaded.definitions)
        for name, definition in loaded.definitions.items():
            known = self.supervisors.get(name)
            if known is not None and known.definition.digest == definition.digest:
                known.read_again(definition)
                continue
            found = check(definition, self.host.config)
            problems += found
            if any(not d.warning for d in found):
                del good[name]
        problems += [found for refused in loaded.refused for found in check_refused(refused, self.host.config)]
        # What could be read of the refused ones has served its purpose.
        self.loaded = msgspec.structs.replace(loaded, definitions=good, diagnostics=tuple(problems), refused=())
        self._needed = frozenset(name for d in good.values() for name in predecessors(d.container))
        self._report_diagnostics()
        for loaded_again in self.on_loaded:
            loaded_again()
        return self.loaded

    def _report_diagnostics(self) -> None:
        """Each refusal once, until it changes or goes away."""
        texts = {str(d): d for d in self.loaded.diagnostics}
        for text in sorted(texts.keys() - self._reported):
            self._report_diagnostic(texts[text])
        self._reported = frozenset(texts)

    def _report_diagnostic(self, diagnostic: Diagnostic) -> None:
        error = DefinitionRejected(
            diagnostic.reason,
            container="",
            file=":".join([diagnostic.file, *(str(n) for n in (diagnostic.line, diagnostic.column) if n)]),
            key=diagnostic.key,
            hint=diagnostic.hint,
        )
        journal.send(
            journal.Event.DEFINITION_REJECTED,
            "",
            container=diagnostic.container,
            error=error,
            priority=journal.Priority.WARNING if diagnostic.warning else None,
        )

    # Lookup

    def _running(self, name: str) -> Running | None:
        supervisor = self.supervisors.get(name)
        running = supervisor.running if supervisor is not None else None
        return running if running is not None and running.payload.is_alive() else None

    def _payload_pid(self, name: str) -> int | None:
        running = self._running(name)
        return running.payload.pid if running is not None else None

    def _running_id(self, name: str) -> str:
        running = self._running(name)
        return running.id if running is not None else ""

    def supervisor(self, name: str) -> Supervisor:
        """The container's supervisor; instances of known templates come into being here. Raises NoSuchContainer."""
        found = self.supervisors.get(name)
        if found is not None:
            return found
        if "@" in name:
            one = self.loader.load_one(name)
            if name in one.definitions:
                return self.create(one.definitions[name])
            self._raise_rejected(name, one.diagnostics)
        self._raise_rejected(name, self.loaded.diagnostics)
        raise NoSuchContainer(
            "no such container",
            container=name,
            hint=f"write {self.host.paths.definition_folders[0]}/{name}.toml, then systemctl reload cleat",
        )

    def present(self, name: str) -> Supervisor:
        """The same, but looking creates nothing: for those who may only look."""
        if name in self.supervisors or "@" not in name:
            return self.supervisor(name)
        raise NoSuchContainer("no such container", container=name, hint=f"cleat start {name} makes this instance")

    @staticmethod
    def _raise_rejected(name: str, diagnostics: Sequence[Diagnostic]) -> None:
        for diagnostic in diagnostics:
            if diagnostic.container == name and not diagnostic.warning:
                raise DefinitionRejected(str(diagnostic), container=name, hint="cleat check")

    def statuses(self, names: Sequence[str]) -> list[Status]:
        """Of the named containers, or of all; a refused definition is told in `error`. Raises NoSuchContainer."""
        refused: dict[str, list[Diagnostic]] = {}
        for diagnostic in self.loaded.diagnostics:
            if diagnostic.container and not diagnostic.warning:
                refused.setdefault(diagnostic.container, []).append(diagnostic)
        chosen = names or sorted(self.supervisors.keys() | refused.keys())
        return [self._status(name, refused.get(name, ())) for name in chosen]

    def _status(self, name: str, refused: Sequence[Diagnostic]) -> Status:
        if not refused:
            return self.present(name).status()
        known = self.supervisors.get(name)
        status = known.status() if known else Status(name=name, state=State.FAILED, definition=refused[0].file)
        more = f"; {len(refused) - 1} more: cleat check" if len(refused) > 1 else ""
        error = f"its definition is refused: {refused[0]}{more}"
        return msgspec.structs.replace(status, error=error, error_code=DefinitionRejected.code)

    def summary(self) -> str:
        """The agent's own STATUS=: how many run, and the names of those that do not do well."""
        by_state: dict[State, list[str]] = {}
        for supervisor in self.supervisors.values():
            by_state.setdefault(supervisor.state, []).append(supervisor.name)
        parts = [f"{len(by_state.get(State.RUNNING, []))} running"]
        for state, names in sorted(by_state.items()):
            if state is State.RUNNING:
                continue
            named = ": " + ", ".join(sorted(names)[:5]) if state in {State.BACKOFF, State.FAILED} else ""
            parts.append(f"{len(names)} {state}{named}" + (" …" if named and len(names) > 5 else ""))
        rejected = self.loaded.rejected
        if rejected:
            parts.append(f"{len(rejected)} rejected: {', '.join(sorted(rejected)[:5])}")
        return ", ".join(parts)

    # Reconciling

    def plan(self) -> tuple[Action, ...]:
        return plan(self.loaded, self._actual())

    def _actual(self) -> dict[str, Actual]:
        return {
            name: Actual(definition=s.definition, state=s.state, wanted=s.wanted, is_active=s.is_active)
            for name, s in self.supervisors.items()
        }

    async def reconcile(self) -> tuple[Action, ...]:
        """Read the definitions and make the host look like them. Failures are the containers' own."""
        async with self._reconciling:
            self.load()
            actions = self.plan()
            errors = await applying.apply(actions, self)
            if not self._launching:
                self.idle.set()
            for name, error in errors.items():
                logger.debug("%s: %s", name, error)
            return actions

    async def start(self, name: str) -> None:
        """Start a container for a plan: those that start on demand only begin to listen."""
        supervisor = self.supervisor(name)
        if name in self._called_off:
            raise InvalidState("was stopped", container=name)
        if supervisor.listening.on_demand and not supervisor.is_active and name not in self._asked_for:
            supervisor.demand.listen()
        else:
            await supervisor.start()

    async def stop(self, name: str) -> None:
        await self.supervisor(name).stop()

    async def remove(self, name: str) -> None:
        """Stop a container whose definition is gone, and forget it."""
        supervisor = self.supervisors[name]
        supervisor.is_retired = True
        try:
            await supervisor.stop()
        except BaseException:
            supervisor.is_retired = False
            raise
        supervisor.listening.close()
        records.remove(self.host.paths.records, name)
        del self.supervisors[name]
        for removed in self.on_removed:
            removed(name)

    async def take(self, name: str, *, live: bool) -> None:
        """Take in a new or changed definition."""
        definition = self.loaded.definitions[name]
        supervisor = self.supervisors.get(name)
        if supervisor is None:
            supervisor = self.create(definition)
            self._changed(supervisor)
        else:
            await supervisor.set_definition(definition, live=live)
        if not live and definition.container.autostart:
            try:
                supervisor.demand.open_sockets()
            except CleatError as e:
                supervisor.fail(e)
                journal.send(journal.Event.SOCKET_FAILED, "", container=name, error=e)
                raise

    def container(self, name: str) -> Container | None:
        supervisor = self.supervisors.get(name)
        if supervisor is not None:
            return supervisor.definition.container
        definition = self.loaded.definitions.get(name)
        return definition.container if definition else None

    def report(self, name: str, error: CleatError) -> None:
        supervisor = self.supervisors.get(name)
        if supervisor is not None and supervisor.listening.on_demand and name not in self._asked_for:
            # Its first connection tries again.
            supervisor.demand.listen()
            return
        if supervisor is not None:
            supervisor.fail(error)
            supervisor.demand.listen_later(failed=True)
        journal.send(journal.Event.DEPENDENCY_FAILED, "", container=name, error=error)

    def create(self, definition: Definition) -> Supervisor:
        """A supervisor for a definition, at rest."""
        supervisor = Supervisor(self.host, definition, self._changed)
        supervisor.before_kill = self.before_kill
        supervisor.demand.start = self._demanded
        self.supervisors[definition.name] = supervisor
        return supervisor

    def _changed(self, supervisor: Supervisor) -> None:
        if supervisor.state is State.STARTING:
            self._launching.add(supervisor.name)
            self.idle.clear()
        elif supervisor.name in self._launching:
            self._launching.discard(supervisor.name)
            if not self._launching:
                self.idle.set()
        for changed in self.on_change:
            changed(supervisor)

    # Commands on several containers

    async def _look_again(self, name: str) -> None:
        """What was refused may be right by now: a missing tool installed, a file corrected."""
        if name not in self.supervisors and name in self.loaded.rejected and name in self.load().definitions:
            await self.take(name, live=False)

    async def start_with_needs(self, name: str) -> None:
        """Start a container after what it needs, as systemd would pull it in; what conflicts with any of them is
        stopped first. Raises the container's own reason.
        """
        await self._look_again(name)
        self.supervisor(name)
        names = related.closure(self._containers(), name)
        await self._stop_conflicting(names)
        errors: dict[str, CleatError] = {}
        self._asked_for.add(name)
        self._called_off.discard(name)
        try:
            await applying.start_all(names, self, errors)
        finally:
            self._asked_for.discard(name)
            self._called_off.discard(name)
        if name in errors:
            raise errors[name]

    def _demanded(self, supervisor: Supervisor) -> None:
        """A connection wants it: as with a start by hand, what it needs comes first, and what conflicts goes."""
        self._background.spawn(self._start_on_demand(supervisor.name))

    async def _start_on_demand(self, name: str) -> None:
        try:
            await self.start_with_needs(name)
        except CleatError as e:
            logger.debug("%s", e)

    async def _stop_conflicting(self, names: Sequence[str]) -> None:
        containers = self._containers()
        found = dict.fromkeys(other for name in names for other in related.conflicting(containers, name))
        async with asyncio.TaskGroup() as group:
            for other in found:
                if self.supervisors[other].is_active and other not in names:
                    group.create_task(self.stop_if_there(other))

    def _containers(self) -> dict[str, Container]:
        return {name: supervisor.definition.container for name, supervisor in self.supervisors.items()}

    async def start_others(self, names: Sequence[str]) -> None:
        """Start containers again that were stopped along with another; their failures are their own."""
        errors: dict[str, CleatError] = {}
        await applying.start_all(names, self, errors)

    async def stop_with_dependents(self, name: str, timeout_sec: float | None) -> None:
        """Stop a container, after those that require it, the farthest first."""
        supervisor = self.supervisor(name)
        if name in self._asked_for:
            self._called_off.add(name)
        for other in [self.supervisors[n] for n in reversed(self.dependents(name))]:
            await other.stop()
        await supervisor.stop(timeout_sec)

    async def stop_if_there(self, name: str) -> None:
        """The same, for one whose definition may be gone by now, and the container with it."""
        with suppress(NoSuchContainer):
            await self.stop_with_dependents(name, None)

    async def restart(self, name: str) -> None:
        """Stop a container and what depends on it, then start all of them again."""
        others = self.dependents(name)
        await self.stop_with_dependents(name, None)
        await self.start_with_needs(name)
        await self.start_others(others)

    def dependents(self, name: str) -> list[str]:
        """Active containers that stop and restart with `name`, nearest first."""
        return [n for n in related.dependents(self._containers(), name) if self.supervisors[n].is_active]

    def followers(self, name: str) -> list[Supervisor]:
        """Active containers that the host's shutdown stops before `name`."""
        found = (self.supervisors[n] for n in related.followers(self._containers(), name))
        return [supervisor for supervisor in found if supervisor.is_active]

    # Coming and going of the agent

    async def see_ends(self) -> None:
        """What ended while there was no agent is told of before anybody asks."""
        await _within_deadline(s.wait() for s in self.supervisors.values() if s.has_ended_unseen)

    async def finish_ends(self) -> None:
        """Containers that have just been stopped get the time to be tidied up and told of: at the host's shutdown the
        agent is next, and nobody would do it later.
        """
        await _within_deadline(s.stopped() for s in self.supervisors.values() if s.is_ending)

    async def leave(self) -> None:
        """Let go of everything; containers stay, but for those that shall end with the agent."""
        ending = [s for s in self.supervisors.values() if s.definition.container.stop_on_agent_exit and s.is_active]
        async with asyncio.TaskGroup() as group:
            for supervisor in ending:
                group.create_task(supervisor.stop())
        async with asyncio.TaskGroup() as group:
            for supervisor in self.supervisors.values():
                group.create_task(supervisor.leave())


async def _within_deadline(waits: Iterable[Awaitable[object]]) -> None:
    """All of them, or until it is too late."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_FINISH_DEADLINE):
            await asyncio.gather(*waits, return_exceptions=True)
