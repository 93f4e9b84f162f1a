# SPDX-License-Identifier: Apache-2.0
"""Which containers a command on one of them reaches."""

from __future__ import annotations

from typing import Any

from agent.definition.model import Container, Network
from agent.reconcile.related import closure, conflicting, dependents, followers


def containers(**keys: dict[str, Any]) -> dict[str, Container]:
    return {name: Container(name=name, rootfs="/srv", **values) for name, values in keys.items()}


SHOP = containers(
    db={},
    cache={"wants": ("db",)},
    web={"requires": ("db",), "wants": ("cache", "gone")},
    proxy={"after": ("web",), "restart_with": ("web",)},
    other={"after": ("db",)},
    beside={"network": Network(mode="container:web")},
    spare={"conflicts": ("web",)},
)


def test_a_start_brings_what_it_needs() -> None:
    assert closure(SHOP, "web") == ["web", "db", "cache"]
    assert closure(SHOP, "proxy") == ["proxy"]
    assert closure(SHOP, "gone") == ["gone"]


def test_a_stop_takes_what_depends_on_it() -> None:
    assert dependents(SHOP, "db") == ["web", "proxy"]
    assert dependents(SHOP, "web") == ["proxy"]
    assert dependents(SHOP, "cache") == []


def test_a_shutdown_goes_backwards() -> None:
    assert followers(SHOP, "db") == ["cache", "web", "other", "proxy", "beside"]


def test_conflicts_hold_both_ways() -> None:
    assert conflicting(SHOP, "web") == ["spare"]
    assert conflicting(SHOP, "spare") == ["web"]


def test_cycles_end() -> None:
    knot = containers(a={"requires": ("b",)}, b={"requires": ("a",)})
    assert closure(knot, "a") == ["a", "b"]
    assert dependents(knot, "a") == ["b"]
