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
    actions = [*_gone(loaded, actual), *_wanted(loaded, actual)]
    return tuple(actions)


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
