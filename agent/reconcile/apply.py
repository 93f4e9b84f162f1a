# SPDX-License-Identifier: Apache-2.0
"""Carrying out a plan: what goes is stopped before what it needs, what comes is started after what it needs.

A start waits for the readiness of what it names in `after`, `requires` and `wants` and is under way too; a failed
requirement fails it. How many start at once is the host's limit, not decided here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Protocol

from agent.definition.model import Container
from agent.errors import CleatError, RuntimeFailed
from agent.reconcile.plan import Action, Verb


class Target(Protocol):
    """What apply asks of the agent, by name."""

    async def start(self, name: str) -> None: ...
    async def stop(self, name: str) -> None: ...
    async def remove(self, name: str) -> None: ...
    async def take(self, name: str, *, live: bool) -> None: ...
    def container(self, name: str) -> Container | None: ...
    def report(self, name: str, error: CleatError) -> None: ...


_STARTS = frozenset({Verb.START, Verb.RESTART})


def needs(container: Container | None) -> frozenset[str]:
    """The names that have to be ready before this container starts, where they start too."""
    if container is None:
        return frozenset()
    return frozenset({*container.after, *container.requires, *container.wants, *container.restart_with})


async def apply(actions: Sequence[Action], target: Target) -> dict[str, CleatError]:
    """Carry out all actions; errors by name. One failure never keeps the others from happening."""
    errors: dict[str, CleatError] = {}
    stopping = [a for a in actions if a.verb in {Verb.STOP, Verb.REMOVE, Verb.RESTART}]
    await _stop_all(stopping, target, errors)
    for action in actions:
        if action.verb in {Verb.ADD, Verb.UPDATE, Verb.REPLACE, *_STARTS}:
            await _guarded(action.name, target.take(action.name, live=action.verb is Verb.UPDATE), errors)
    await start_all([a.name for a in actions if a.verb in _STARTS], target, errors)
    return errors


async def _stop_all(actions: Sequence[Action], target: Target, errors: dict[str, CleatError]) -> None:
    """In reverse: a container is stopped when everything that needs it, and stops too, has ended."""
    names = {action.name for action in actions}
    gone = {action.name for action in actions if action.verb is not Verb.RESTART}
    needed_by: dict[str, set[str]] = {name: set() for name in names}
    for name in names:
        for need in needs(target.container(name)) & names:
            needed_by[need].add(name)
    done = {name: asyncio.Event() for name in names}

    async def stop(name: str) -> None:
        for other in needed_by[name]:
            await done[other].wait()
        try:
            await _guarded(name, target.remove(name) if name in gone else target.stop(name), errors)
        finally:
            done[name].set()

    async with asyncio.TaskGroup() as group:
        for name in _acyclic(names, needed_by):
            group.create_task(stop(name))


def _acyclic(names: Iterable[str], waits_for: Mapping[str, set[str]]) -> list[str]:
    """The names, with edges that close a cycle taken out of `waits_for`: a cycle must not hang a shutdown.

    Depth first, with a stack of its own: a chain may be longer than Python's.
    """
    done: set[str] = set()
    ordered = sorted(names)
    for first in ordered:
        path: dict[str, list[str]] = {}
        todo = [first]
        while todo:
            name = todo[-1]
            if name in done:
                todo.pop()
                continue
            left = path.setdefault(name, sorted(waits_for[name]))
            if not left:
                done.add(name)
                path.pop(name)
                todo.pop()
                continue
            other = left.pop()
            if other in path:
                waits_for[name].discard(other)
            elif other not in done:
                todo.append(other)
    return ordered


async def start_all(names: Sequence[str], target: Target, errors: dict[str, CleatError]) -> None:
    """Start all of `names`, each after those among them that it needs."""
    wanted = set(names)
    waits_for = {name: set(needs(target.container(name)) & wanted) - {name} for name in wanted}
    order = _acyclic(wanted, waits_for)
    done = {name: asyncio.Event() for name in wanted}

    async def start(name: str) -> None:
        try:
            for other in waits_for[name]:
                await done[other].wait()
            failed = [other for other in sorted(_requires(target, name)) if other in errors]
            if failed:
                error = RuntimeFailed(
                    f"not started: {failed[0]} is required and failed",
                    container=name,
                    hint=f"cleat status {failed[0]}",
                )
                errors[name] = error
                target.report(name, error)
            else:
                await _guarded(name, target.start(name), errors)
        finally:
            done[name].set()

    async with asyncio.TaskGroup() as group:
        for name in order:
            group.create_task(start(name))


def _requires(target: Target, name: str) -> set[str]:
    container = target.container(name)
    return set(container.requires) if container is not None else set()


async def _guarded(name: str, step: Awaitable[None], errors: dict[str, CleatError]) -> None:
    try:
        await step
    except CleatError as e:
        errors[name] = e
