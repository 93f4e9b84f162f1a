# SPDX-License-Identifier: Apache-2.0
"""When an image is fetched, and what a prune takes away."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.definition.model import PullPolicy
from agent.images.policy import Fetch, Held, decide, removable


@pytest.mark.parametrize(
    ("policy", "absent", "here"),
    [
        (PullPolicy.MISSING, Fetch.NOW, Fetch.NOTHING),
        (PullPolicy.ALWAYS, Fetch.NOW, Fetch.COMPARE),
        (PullPolicy.NEWER, Fetch.NOW, Fetch.PREFER),
        (PullPolicy.NEVER, Fetch.REFUSE, Fetch.NOTHING),
    ],
)
def test_policies(policy: PullPolicy, absent: Fetch, here: Fetch) -> None:
    for is_fixed in (False, True):
        assert decide(policy, is_here=False, is_fixed=is_fixed) is absent
    assert decide(policy, is_here=True, is_fixed=False) is here
    assert decide(policy, is_here=True, is_fixed=True) is Fetch.NOTHING


HELD = {"a:1": Held(digest="A"), "b:1": Held(digest="B"), "b:2": Held(digest="B")}
BLOBS = {"A": {"A", "a", "common"}, "B": {"B", "b", "common"}}


def test_prune_takes_what_nobody_needs() -> None:
    found = removable(HELD, ["b:1"], [], ["A", "B", "old"], ["A", "a", "B", "b", "common", "stray"], BLOBS)
    assert found.references == ("a:1", "b:2")
    assert found.trees == ("A", "old")
    assert found.blobs == ("A", "a", "stray")


def test_a_running_container_keeps_its_tree() -> None:
    found = removable(HELD, [], ["old"], ["A", "B", "old"], ["A", "stray"], BLOBS)
    assert found.trees == ("A", "B")
    assert found.blobs == ("A", "stray")


names = st.sampled_from(["a:1", "b:1", "b:2"])


@given(st.frozensets(names), st.frozensets(st.sampled_from("ABC")))
def test_nothing_needed_ever_goes(needed: frozenset[str], in_use: frozenset[str]) -> None:
    blobs = ["A", "a", "B", "b", "common", "stray"]
    found = removable(HELD, needed, in_use, ["A", "B", "C"], blobs, BLOBS)
    kept = {HELD[name].digest for name in needed}
    assert not set(found.references) & needed
    assert not set(found.trees) & (kept | in_use)
    assert not set(found.blobs) & {blob for digest in kept for blob in BLOBS[digest]}
    assert "stray" in found.blobs
