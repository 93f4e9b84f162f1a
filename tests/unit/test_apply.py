# SPDX-License-Identifier: Apache-2.0
"""Order in which a plan is carried out."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

from agent.definition.model import Container
from agent.errors import CleatError, RuntimeFailed
from agent.reconcile.apply import apply
from agent.reconcile.plan import Action, Verb


class Recorder:
    """A target that notes what it is asked, each step taking a turn of the loop."""

    def __init__(self, *containers: Container, broken: frozenset[str] = frozenset()) -> None:
        self.containers = {c.name: c for c in containers}
        self.broken = broken
        self.steps: list[str] = []
        self.reported: dict[str, CleatError] = {}

    async def _step(self, what: str, name: str) -> None:
        await asyncio.sleep(0)
        self.steps.append(f"{what} {name}")

    async def start(self, name: str) -> None:
        await self._step("start", name)
        if name in self.broken:
            raise RuntimeFailed("broken", container=name)

    async def stop(self, name: str) -> None:
        await self._step("stop", name)

    async def remove(self, name: str) -> None:
        await self._step("remove", name)

    async def take(self, name: str, *, live: bool) -> None:
        self.steps.append(f"{'update' if live else 'take'} {name}")

    def container(self, name: str) -> Container | None:
        return self.containers.get(name)

    def report(self, name: str, error: CleatError) -> None:
        self.reported[name] = error


def container(name: str, **keys: Any) -> Container:
    return Container(name=name, **keys)


def run(target: Recorder, *actions: tuple[Verb, str]) -> dict[str, CleatError]:
    return asyncio.run(apply([Action(verb=verb, name=name) for verb, name in actions], target))


def test_a_start_waits_for_what_it_needs() -> None:
    target = Recorder(container("web", after=("db",)), container("db", requires=("disk",)), container("disk"))
    run(target, (Verb.START, "web"), (Verb.START, "db"), (Verb.START, "disk"))
    assert [s for s in target.steps if s.startswith("start")] == ["start disk", "start db", "start web"]


def test_what_goes_is_stopped_in_reverse() -> None:
    target = Recorder(container("web", after=("db",)), container("db"))
    run(target, (Verb.STOP, "db"), (Verb.STOP, "web"))
    assert target.steps == ["remove web", "remove db"]


def test_a_failed_requirement_fails_what_needs_it_and_nothing_else() -> None:
    target = Recorder(
        container("db"), container("web", requires=("db",)), container("log", wants=("db",)), broken=frozenset({"db"})
    )
    errors = run(target, (Verb.START, "db"), (Verb.START, "web"), (Verb.START, "log"))
    assert errors.keys() == {"db", "web"}
    assert "start log" in target.steps
    assert "start web" not in target.steps
    assert "db is required" in str(target.reported["web"])


def test_a_cycle_does_not_hang() -> None:
    target = Recorder(container("a", after=("b",)), container("b", after=("a",)))
    asyncio.run(asyncio.wait_for(apply([Action(verb=Verb.START, name=n) for n in "ab"], target), 5))
    assert {"start a", "start b"} <= set(target.steps)


def test_a_restart_stops_first_and_takes_the_new_definition_before_the_start() -> None:
    target = Recorder(container("a"))
    run(target, (Verb.RESTART, "a"))
    assert target.steps == ["stop a", "take a", "start a"]


def test_a_long_chain_is_followed_to_its_end() -> None:
    names = [f"c{i}" for i in range(3000)]
    target = Recorder(*(container(n, after=(m,)) for n, m in pairwise(names)), container(names[-1]))
    run(target, *((Verb.START, name) for name in names))
    assert [s for s in target.steps if s.startswith("start")] == [f"start {n}" for n in reversed(names)]
