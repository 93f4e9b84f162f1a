# SPDX-License-Identifier: Apache-2.0
"""Id mappings: parsed, allocated, stacked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import InvalidArgument, Unsupported
from agent.oci import idmap
from agent.oci.idmap import Mappings
from agent.oci.inputs import IdMapping

SUBIDS = "# comment\nadmin:100000:65536\ncontainers:200000:131072\ncontainers:bad\ncontainers:1000000:65536\n1000:5:7\n"


def test_parsing() -> None:
    assert idmap.parse(["0:100000:1000", "1000:200000:1"], "k") == (
        IdMapping(0, 100000, 1000), IdMapping(1000, 200000, 1)
    )  # fmt: skip


@pytest.mark.parametrize(
    "entries",
    [["0:1"], ["0:1:0"], ["0:1:-1"], ["a:1:1"], ["0:1:1:1"], ["0:4294967295:1"],
     ["0:1:4294967296"], ["\u0660:1:1"], [""],
     ["0:1:10", "5:100:10"], ["0:1:10", "20:5:10"], ["0:0:1"] * 341],
)  # fmt: skip
def test_bad_mappings_are_refused(entries: list[str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        idmap.parse(entries, "security.uid_map")
    assert caught.value.key == "security.uid_map"


def test_of_a_definition() -> None:
    both = idmap.of_definition(["0:100000:65536"], [])
    assert both.uids == both.gids
    assert both.root == (100000, 100000)
    assert idmap.of_definition(["0:100000:2"], ["0:7:2"]).root == (100000, 7)


@pytest.mark.parametrize("uid_map", [[], ["1:100000:5"]])
def test_root_must_be_mapped(uid_map: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="uid_map"):
        idmap.of_definition(uid_map, [])


def test_auto_takes_the_lowest_free_range() -> None:
    one = idmap.auto(SUBIDS, SUBIDS, [])
    two = idmap.auto(SUBIDS, SUBIDS, [one])
    three = idmap.auto(SUBIDS, SUBIDS, [one, two])
    assert [m.uids[0].host_id for m in (one, two, three)] == [200000, 265536, 1000000]
    assert one.uids == one.gids == (IdMapping(0, 200000, 65536),)
    assert idmap.auto(SUBIDS, SUBIDS, [one, three]).root == (265536, 265536)
    with pytest.raises(Unsupported, match="/etc/subuid"):
        idmap.auto(SUBIDS, SUBIDS, [one, two, three])


def test_auto_without_ranges_says_what_to_add() -> None:
    with pytest.raises(Unsupported, match=r"containers:2147483647:2147483648 to /etc/subgid"):
        idmap.auto(SUBIDS, "", [])


def test_without_root() -> None:
    own = idmap.for_user(1000, 100, "admin", SUBIDS, "")
    assert own.uids == (IdMapping(0, 1000, 1), IdMapping(1, 100000, 65536), IdMapping(65537, 5, 7))
    assert own.gids == (IdMapping(0, 100, 1),)


ranges = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 1 << 18)), max_size=4)
used = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 1 << 16)), max_size=6)


@given(ranges, used)
def test_what_auto_gives_is_free_and_the_users_own(
    given_ranges: list[tuple[int, int]], taken: list[tuple[int, int]]
) -> None:
    text = "\n".join(f"containers:{first}:{count}" for first, count in given_ranges)
    in_use = [Mappings((IdMapping(0, a, n),), (IdMapping(0, a, n),)) for a, n in taken]
    try:
        found = idmap.auto(text, text, in_use, size=4096).uids[0].host_id
    except Unsupported:
        return
    assert any(first <= found and found + 4096 <= first + count for first, count in given_ranges)
    assert not any(a < found + 4096 and found < a + n for a, n in taken)


@given(st.lists(st.text(max_size=24), max_size=3))
def test_any_text_parses_or_is_refused(entries: list[str]) -> None:
    try:
        found = idmap.parse(entries, "k")
    except InvalidArgument:
        return
    assert [f"{m.container_id}:{m.host_id}:{m.size}" for m in found] == [
        ":".join(str(int(n)) for n in entry.split(":")) for entry in entries
    ]
