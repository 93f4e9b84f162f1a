# SPDX-License-Identifier: Apache-2.0
"""Dependencies between definitions: names that are not there, cycles, the order of starting; pure.

A container starts after everything that it names in `after`, `requires`, `wants` and `restart_with`, as far as that is
started too, and after the containers whose namespaces it joins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from agent.definition.model import Container
from agent.definition.parse import KeyPath, Problem
from agent.definition.values import nearest_hint, template_of

Containers = Mapping[str, Container]
ORDERING = ("after", "requires", "wants", "restart_with")


class Found(NamedTuple):
    """A problem in the definition of `name`."""

    name: str
    problem: Problem


def predecessors(container: Container) -> tuple[str, ...]:
    """Names that this container is started after."""
    names = [*container.after, *container.requires, *container.wants, *container.restart_with]
    names += [name for _, name in joined(container)]
    return tuple(dict.fromkeys(names)) if names else ()


def joined(container: Container) -> list[tuple[KeyPath, str]]:
    """The containers whose namespaces this one joins, each with the key that says so."""
    security = container.security
    modes: list[tuple[KeyPath, str]] = [
        (("network", "mode"), container.network.mode),
        (("security", "pid"), security.pid),
        (("security", "ipc"), security.ipc),
        (("security", "uts"), security.uts),
    ]
    return [(path, mode.partition(":")[2]) for path, mode in modes if mode.startswith("container:")]


def problems(containers: Containers, *, others: Iterable[str] = ()) -> list[Found]:
    """Missing names and cycles. `others` are further names that exist: refused definitions, templates ("web@")."""
    known = {*containers, *others}
    found = [each for name in sorted(containers) for each in _missing(containers[name], known)]
    found += [each for name in sorted(containers) for each in _contradictions(containers, name)]
    return found + [_cycle(containers, path) for path in cycles(containers)]


def _missing(container: Container, known: set[str]) -> Iterator[Found]:
    for path, name in _references(container):
        if name in known or template_of(name) in known:
            continue
        is_needed = path[0] in {"requires", "network", "security"}
        hint = nearest_hint(name, known) or "add its definition, or remove the name"
        problem = Problem(path, f'there is no container "{name}"', hint, warning=not is_needed)
        yield Found(container.name, problem)


def _contradictions(containers: Containers, name: str) -> Iterator[Found]:
    """Pairs of which only one can start by itself."""
    container = containers[name]
    for i, other in enumerate(container.conflicts):
        known = containers.get(other)
        if known is not None and container.autostart and known.autostart:
            first, second = sorted((name, other))
            problem = Problem(
                ("conflicts", i),
                f'both start by themselves: "{first}" will, "{second}" will not',
                "set autostart = false in one of them",
                warning=True,
            )
            yield Found(name, problem)


def _references(container: Container) -> Iterator[tuple[KeyPath, str]]:
    # A conflict with what is not there is none.
    for key in ORDERING:
        for i, name in enumerate(getattr(container, key)):
            yield (key, i), name
    yield from joined(container)


def _cycle(containers: Containers, path: tuple[str, ...]) -> Found:
    """A cycle of `after` alone is a mistake; one that is closed by another key is only a doubt."""
    steps = list(zip(path, (*path[1:], path[0]), strict=True))
    wheres = [_reference(containers[name], other) for name, other in steps]
    words = " ".join(f"{name} {where[0]}" for name, where in zip(path, wheres, strict=True))
    is_doubt = any(where[0] != "after" for where in wheres)
    hint = "remove one of them; until then their order is left open"
    return Found(path[0], Problem(wheres[0], f"a cycle: {words} {path[0]}", hint, warning=is_doubt))


def _reference(container: Container, other: str) -> KeyPath:
    """Where a container says that it starts after another one."""
    for key in ORDERING:
        names = getattr(container, key)
        if other in names:
            return key, names.index(other)
    return "network", "mode"


def _edges(containers: Containers) -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(other for other in predecessors(container) if other in containers and other != name)
        for name, container in containers.items()
    }


def cycles(containers: Containers) -> list[tuple[str, ...]]:
    """A shortest cycle of each knot of containers that wait for each other, each from its first name on."""
    edges = {name: others for name, others in _edges(containers).items() if others}
    edges = {name: tuple(other for other in others if other in edges) for name, others in edges.items()}
    knots = [knot for knot in _knots(edges) if len(knot) > 1]
    return sorted(_shortest(edges, knot) for knot in knots)


def order(containers: Containers) -> list[tuple[str, ...]]:
    """Levels for starting: all of a level may start together once those before it are ready.

    Every container is in it; inside a cycle there is no order.
    """
    edges = _edges(containers)
    knot_of = {name: i for i, knot in enumerate(_knots(edges)) for name in knot}
    waits = {name: {o for o in others if knot_of[o] != knot_of[name]} for name, others in edges.items()}
    followers: dict[str, list[str]] = {}
    for name, others in waits.items():
        for other in others:
            followers.setdefault(other, []).append(name)
    level = sorted(name for name, others in waits.items() if not others)
    levels: list[tuple[str, ...]] = []
    while level:
        levels.append(tuple(level))
        following: set[str] = set()
        for name in level:
            for follower in followers.get(name, ()):
                waits[follower].discard(name)
                if not waits[follower]:
                    following.add(follower)
        level = sorted(following)
    return levels


def _knots(edges: Mapping[str, tuple[str, ...]]) -> list[list[str]]:
    """Strongly connected components, by Tarjan's algorithm without recursion: chains may be long."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    knots: list[list[str]] = []
    for root in sorted(edges):
        if root in index:
            continue
        work = [(root, iter(edges[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            name, others = work[-1]
            other = next((o for o in others if o not in index or o in on_stack), None)
            if other is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[name])
                if low[name] == index[name]:
                    knots.append(_take_knot(stack, on_stack, name))
            elif other in index:
                low[name] = min(low[name], index[other])
            else:
                index[other] = low[other] = len(index)
                stack.append(other)
                on_stack.add(other)
                work.append((other, iter(edges[other])))
    return knots


def _take_knot(stack: list[str], on_stack: set[str], last: str) -> list[str]:
    knot: list[str] = []
    while not knot or knot[-1] != last:
        knot.append(stack.pop())
    on_stack.difference_update(knot)
    return knot


def _shortest(edges: Mapping[str, tuple[str, ...]], knot: list[str]) -> tuple[str, ...]:
    """The shortest way from the first name of a knot back to it."""
    members, first = set(knot), min(knot)
    came_from: dict[str, str] = {}
    queue = deque([first])
    while queue:
        name = queue.popleft()
        for other in edges[name]:
            if other == first:
                return _way(came_from, first, name)
            if other in members and other not in came_from:
                came_from[other] = name
                queue.append(other)
    return (first,)


def _way(came_from: Mapping[str, str], first: str, last: str) -> tuple[str, ...]:
    way = [last]
    while way[-1] != first:
        way.append(came_from[way[-1]])
    return tuple(reversed(way))
