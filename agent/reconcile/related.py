# SPDX-License-Identifier: Apache-2.0
"""Which containers a command on one of them reaches, by the rules of systemd.unit(5); pure.

requires, wants     are started with it
requires            stopping what is required stops it (Requires=)
restart_with        stopping or restarting the other does so too (PartOf=)
conflicts           starting either stops the other (Conflicts=)
after               only orders; so do all of the above but conflicts
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from agent.definition.graph import predecessors
from agent.definition.model import Container

Containers = Mapping[str, Container]


def closure(containers: Containers, name: str) -> list[str]:
    """The container and all that it requires or wants, directly or not, as far as it exists."""
    return [name, *_reach(name, lambda n: (*containers[n].requires, *containers[n].wants), containers)]


def dependents(containers: Containers, name: str) -> list[str]:
    """What must stop with it: all that require it or restart with it, directly or not, nearest first."""
    return _reach(name, lambda n: _naming(containers, n, lambda c: (*c.requires, *c.restart_with)), containers)


def followers(containers: Containers, name: str) -> list[str]:
    """What stops before it when all stop: everything ordered after it, directly or not, nearest first."""
    return _reach(name, lambda n: _naming(containers, n, predecessors), containers)


def conflicting(containers: Containers, name: str) -> list[str]:
    """What cannot run beside it, whichever of the two says so."""
    own = containers[name].conflicts if name in containers else ()
    others = (n for n, container in containers.items() if name in container.conflicts)
    return sorted({n for n in (*own, *others) if n != name and n in containers})


def _naming(containers: Containers, name: str, names: Callable[[Container], Iterable[str]]) -> list[str]:
    return [other for other, container in containers.items() if name in names(container)]


def _reach(name: str, step: Callable[[str], Iterable[str]], containers: Containers) -> list[str]:
    """All that is reached from `name` by `step`, without itself, in the order in which it is found."""
    found: dict[str, None] = {}
    todo = [name] if name in containers else []
    while todo:
        for other in step(todo.pop(0)):
            if other != name and other not in found and other in containers:
                found[other] = None
                todo.append(other)
    return list(found)
