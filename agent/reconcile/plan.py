# SPDX-License-Identifier: Apache-2.0
"""Desired against actual: which containers to start, stop, restart, change or forget; a pure value.

A name whose file was refused is left alone: what runs under it goes on with the last good definition. A container that
somebody stopped is not started by a reload; a change of its file is only taken note of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from agent.definition.model import Container, Definition, Loaded
from agent.reconcile import related
from agent.status import State


class Verb(StrEnum):
    ADD = "add"
    START = "start"
    RESTART = "restart"
    UPDATE = "update"
    REPLACE = "replace"
    STOP = "stop"
    REMOVE = "remove"


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """One step. ADD and REPLACE only take a definition in; UPDATE changes a running container without a restart."""

    verb: Verb
    name: str
    reason: str = ""
    keys: tuple[str, ...] = ()

    def __str__(self) -> str:
        detail = f" ({self.reason})" if self.reason else ""
        return f"{self.verb} {self.name}{detail}"


class Actual(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent has under a name."""

    definition: Definition
    state: State
    wanted: bool = True
    is_active: bool = False


_LIVE_KEYS = frozenset(
    {
        "source", "description", "labels", "autostart", "after", "requires", "wants", "restart_with", "conflicts",
        "stop_on_agent_exit", "health", "update", "pull",
    }
)  # fmt: skip
_FIXED_SERVICE_KEYS = frozenset({"type", "notify", "watchdog_sec", "file_descriptor_store_max"})


def changed_keys(old: Container, new: Container) -> tuple[str, ...]:
    """The keys in which two definitions differ, tables one level deep: `command`, `service.restart`."""
    keys: list[str] = []
    for field in old.__struct_fields__:
        before, after = getattr(old, field), getattr(new, field)
        if before == after:
            continue
        if isinstance(before, msgspec.Struct) and isinstance(after, msgspec.Struct):
            inner = [key for key in before.__struct_fields__ if getattr(before, key) != getattr(after, key)]
            keys += [f"{field}.{key}" for key in inner]
        else:
            keys.append(field)
    return tuple(keys)


def is_live(key: str) -> bool:
    """Whether a change of this key is applied to a running container without restarting it."""
    table, _, inner = key.partition(".")
    if table == "service":
        return inner not in _FIXED_SERVICE_KEYS
    return table in _LIVE_KEYS or key == "resources.properties"


def plan(loaded: Loaded, actual: Mapping[str, Actual]) -> tuple[Action, ...]:
    """All actions, stops first, each group in name order; apply.py orders them by dependency."""
    containers = {
        **{name: a.definition.container for name, a in actual.items()},
        **{name: d.container for name, d in loaded.definitions.items()},
    }
    gone = list(_gone(loaded, actual))
    wanted = {action.name: action for action in _wanted(loaded, actual)}
    going = {action.name for action in gone}
    _restart_too(wanted, containers, {name for name, a in actual.items() if a.is_active} - going)
    _keep_apart(wanted, containers, {name for name, a in actual.items() if a.is_active} - going)
    return (*gone, *(wanted[name] for name in sorted(wanted)))


def _restart_too(wanted: dict[str, Action], containers: Mapping[str, Container], active: set[str]) -> None:
    """A restart takes along what requires the container or restarts with it, as far as that runs."""
    for name in [name for name, action in wanted.items() if action.verb is Verb.RESTART]:
        for other in related.dependents(containers, name):
            known = wanted.get(other)
            if other in active and (known is None or known.verb is not Verb.RESTART):
                keys = known.keys if known else ()
                wanted[other] = Action(verb=Verb.RESTART, name=other, reason=f"restarts with {name}", keys=keys)


def _keep_apart(wanted: dict[str, Action], containers: Mapping[str, Container], active: set[str]) -> None:
    """Only a person's start stops what conflicts: here what runs stays, and of two new ones the first by name comes."""
    coming = set(active)
    for name in sorted(wanted):
        if wanted[name].verb is not Verb.START:
            continue
        others = [other for other in related.conflicting(containers, name) if other in coming]
        if others:
            wanted[name] = Action(verb=Verb.ADD, name=name, reason=f"not started, it conflicts with {others[0]}")
        else:
            coming.add(name)


def _gone(loaded: Loaded, actual: Mapping[str, Actual]) -> Iterable[Action]:
    for name in sorted(actual.keys() - loaded.definitions.keys() - loaded.rejected):
        reason = "masked" if name in loaded.masked else "its definition is gone"
        yield Action(verb=Verb.STOP if actual[name].is_active else Verb.REMOVE, name=name, reason=reason)


def _wanted(loaded: Loaded, actual: Mapping[str, Actual]) -> Iterable[Action]:
    for name in sorted(loaded.definitions):
        new = loaded.definitions[name]
        old = actual.get(name)
        if old is None:
            yield _new(new)
        elif old.definition.digest != new.digest:
            yield from _changed(old, new)


def _new(definition: Definition) -> Action:
    if definition.container.autostart:
        return Action(verb=Verb.START, name=definition.name, reason="new")
    return Action(verb=Verb.ADD, name=definition.name, reason="new, autostart is off")


def _changed(old: Actual, new: Definition) -> Iterable[Action]:
    keys = changed_keys(old.definition.container, new.container)
    reason = "changed: " + ", ".join(keys) if keys else "changed"
    # Environment files count in the digest and show in `environment`; nothing else may differ without a key.
    if not old.is_active:
        again = old.wanted and new.container.autostart and old.state is State.FAILED
        verb = Verb.START if again else Verb.REPLACE
    elif all(is_live(key) for key in keys):
        verb = Verb.UPDATE
    else:
        verb = Verb.RESTART
    yield Action(verb=verb, name=new.name, reason=reason, keys=keys)
