# SPDX-License-Identifier: Apache-2.0
"""The plan between what shall be and what is."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agent.definition.model import Container, Definition, Diagnostic, Loaded, Resources, Restart, Service
from agent.reconcile.plan import Action, Actual, Verb, changed_keys, is_live, plan
from agent.status import State


def definition(name: str, digest: str = "1", **keys: Any) -> Definition:
    return Definition(container=Container(name=name, rootfs="/srv", **keys), raw={}, digest=digest)


def running(of: Definition) -> Actual:
    return Actual(definition=of, state=State.RUNNING, is_active=True)


def steps(loaded: Loaded, actual: dict[str, Actual]) -> list[str]:
    return [str(action) for action in plan(loaded, actual)]


def test_new_ones_start_unless_they_shall_not() -> None:
    loaded = Loaded(definitions={"a": definition("a"), "b": definition("b", autostart=False)})
    assert steps(loaded, {}) == ["start a (new)", "add b (new, autostart is off)"]


def test_gone_ones_stop() -> None:
    at_rest = Actual(definition=definition("b"), state=State.EXITED)
    loaded = Loaded(definitions={}, masked=("a",))
    assert steps(loaded, {"a": running(definition("a")), "b": at_rest}) == [
        "stop a (masked)",
        "remove b (its definition is gone)",
    ]


def test_a_refused_file_touches_nothing() -> None:
    refused = Diagnostic(file="/etc/cleat/containers/a.toml", reason="bad", container="a")
    assert steps(Loaded(definitions={}, diagnostics=(refused,)), {"a": running(definition("a"))}) == []


def test_unchanged_ones_are_left_alone() -> None:
    a = definition("a")
    assert steps(Loaded(definitions={"a": a}), {"a": running(a)}) == []


@pytest.mark.parametrize(
    ("keys", "verb"),
    [
        ({"command": ("x",)}, Verb.RESTART),
        ({"service": Service(restart=Restart.ALWAYS)}, Verb.UPDATE),
        ({"service": Service(watchdog_sec=5)}, Verb.RESTART),
        ({"resources": Resources(properties={"memory_max": "1G"})}, Verb.UPDATE),
        ({"resources": Resources(limits={"nofile": (1, 2)})}, Verb.RESTART),
        ({"description": "other"}, Verb.UPDATE),
    ],
)
def test_a_change_restarts_only_when_it_must(keys: dict[str, Any], verb: Verb) -> None:
    (action,) = plan(Loaded(definitions={"a": definition("a", "2", **keys)}), {"a": running(definition("a"))})
    assert action.verb is verb


def test_what_somebody_stopped_is_not_started_by_a_change() -> None:
    stopped = Actual(definition=definition("a"), state=State.INACTIVE, wanted=False)
    (action,) = plan(Loaded(definitions={"a": definition("a", "2", command=("x",))}), {"a": stopped})
    assert action.verb is Verb.REPLACE


def test_what_failed_is_tried_again_with_its_new_definition() -> None:
    failed = Actual(definition=definition("a"), state=State.FAILED)
    (action,) = plan(Loaded(definitions={"a": definition("a", "2", command=("x",))}), {"a": failed})
    assert action.verb is Verb.START


def test_changed_keys_name_the_inner_key() -> None:
    old = Container(name="a", command=("x",))
    new = msgspec.structs.replace(old, command=("y",), service=Service(restart_sec=3))
    assert changed_keys(old, new) == ("command", "service.restart_sec")
    assert not is_live("command")
    assert is_live("service.restart_sec")


def test_an_action_reads_well() -> None:
    assert str(Action(verb=Verb.START, name="a")) == "start a"


def test_a_restart_takes_along_what_depends_on_it() -> None:
    db = definition("db", command=("old",))
    web, shell = definition("web", requires=("db",)), definition("shell", restart_with=("web",))
    idle, other = definition("idle", requires=("db",)), definition("other", after=("db",))
    loaded = Loaded(definitions={d.name: d for d in (definition("db", "2", command=("new",)), web, shell, idle, other)})
    actual = {d.name: running(d) for d in (db, web, shell, other)}
    actual["idle"] = Actual(definition=idle, state=State.INACTIVE)
    assert steps(loaded, actual) == [
        "restart db (changed: command)",
        "restart shell (restarts with db)",
        "restart web (restarts with db)",
    ]


def test_a_live_change_is_part_of_the_restart_it_is_taken_along_by() -> None:
    db, web = definition("db", command=("old",)), definition("web", requires=("db",))
    new = definition("db", "2", command=("new",)), definition("web", "2", requires=("db",), description="d")
    found = plan(Loaded(definitions={d.name: d for d in new}), {d.name: running(d) for d in (db, web)})
    assert [(a.verb, a.keys) for a in found] == [(Verb.RESTART, ("command",)), (Verb.RESTART, ("description",))]


def test_of_what_conflicts_only_one_comes() -> None:
    a, b, c = definition("a"), definition("b", conflicts=("a",)), definition("c", conflicts=("b",))
    loaded = Loaded(definitions={d.name: d for d in (a, b, c)})
    assert steps(loaded, {}) == ["start a (new)", "add b (not started, it conflicts with a)", "start c (new)"]
    assert steps(loaded, {"b": running(b)}) == [
        "add a (not started, it conflicts with b)",
        "add c (not started, it conflicts with b)",
    ]


def test_what_goes_makes_room_for_what_conflicts() -> None:
    old, new = definition("old"), definition("new", conflicts=("old",))
    assert steps(Loaded(definitions={"new": new}), {"old": running(old)}) == [
        "stop old (its definition is gone)",
        "start new (new)",
    ]
