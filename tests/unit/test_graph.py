# SPDX-License-Identifier: Apache-2.0
"""Dependencies between definitions: missing names, cycles, order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.definition.graph import cycles, order, predecessors, problems
from agent.definition.model import Container, Network


def containers(**after: str) -> dict[str, Container]:
    return {name: Container(name=name, after=tuple(others.split())) for name, others in after.items()}


def test_levels() -> None:
    assert order(containers(a="", b="a", c="a b", d="")) == [("a", "d"), ("b",), ("c",)]
    assert order({}) == []


def test_names_outside_do_not_count() -> None:
    assert order(containers(a="elsewhere")) == [("a",)]


def test_cycle_is_named_and_does_not_stop_the_others() -> None:
    found = containers(a="b", b="c", c="a", d="a")
    assert cycles(found) == [("a", "b", "c")]
    assert order(found) == [("a", "b", "c"), ("d",)]
    (problem,) = problems(found)
    assert problem.name == "a"
    assert problem.problem.path == ("after", 0)
    assert problem.problem.reason == "a cycle: a after b after c after a"
    assert not problem.problem.warning


def test_cycle_by_other_keys_is_a_warning() -> None:
    found = {"a": Container(name="a", requires=("b",)), "b": Container(name="b", after=("a",))}
    (problem,) = problems(found)
    assert problem.problem.reason == "a cycle: a requires b after a"
    assert problem.problem.warning


def test_two_cycles() -> None:
    assert cycles(containers(a="b", b="a", x="y", y="x")) == [("a", "b"), ("x", "y")]


def test_missing_names() -> None:
    found = {
        "web": Container(
            name="web",
            after=("bd",),
            requires=("bd", "worker@1"),
            wants=("cache",),
            network=Network(mode="container:pod"),
        ),
        "db": Container(name="db"),
    }
    said = {(p.path, p.warning, p.hint.startswith("did you mean")) for _, p in problems(found, others=["worker@"])}
    assert said == {
        (("after", 0), True, True),
        (("requires", 0), False, True),
        (("wants", 0), True, False),
        (("network", "mode"), False, False),
    }


def test_joined_network_orders() -> None:
    joined = Container(name="b", network=Network(mode="container:a"))
    assert predecessors(joined) == ("a",)
    assert order({"b": joined, "a": Container(name="a")}) == [("a",), ("b",)]


def test_long_chain() -> None:
    chain = {f"n{i}": Container(name=f"n{i}", after=(f"n{i - 1}",) if i else ()) for i in range(5000)}
    assert len(order(chain)) == 5000


_NAMES = st.sampled_from("abcdefgh")


@given(st.dictionaries(_NAMES, st.lists(_NAMES, max_size=4)))
def test_everyone_is_ordered_once(edges: dict[str, list[str]]) -> None:
    found = {name: Container(name=name, after=tuple(others)) for name, others in edges.items()}
    levels = order(found)
    flat = [name for level in levels for name in level]
    assert sorted(flat) == sorted(found)
    if not cycles(found):
        level_of = {name: i for i, level in enumerate(levels) for name in level}
        for name, others in edges.items():
            assert all(level_of[other] < level_of[name] for other in others if other in found and other != name)
    for path in cycles(found):
        assert all(after in edges[name] for name, after in zip(path, (*path[1:], path[0]), strict=True))
