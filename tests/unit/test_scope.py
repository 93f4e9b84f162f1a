# SPDX-License-Identifier: Apache-2.0
"""A container's scope as values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import cgroup
from agent.container import scope
from agent.container.health import HEALTHY, STARTING, UNHEALTHY, Progress, judge
from agent.definition.model import Container, Health, Resources, Service
from agent.systemd.bus import decode_path, encode_path


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("cleat.slice", "cleat.slice"),
        ("cleat-web-blue.slice", "cleat.slice/cleat-web.slice/cleat-web-blue.slice"),
        ("-.slice", ""),
    ],
)
def test_slices_nest(name: str, path: str) -> None:
    assert scope.slice_path(name) == path


def test_expected_cgroup() -> None:
    assert scope.expected_cgroup("", "cleat.slice", "cleat-a.scope") == "/cleat.slice/cleat-a.scope"
    assert scope.expected_cgroup("/u/", "-.slice", "cleat-a.scope") == "/u/cleat-a.scope"


def test_names_come_back() -> None:
    assert scope.container_name(scope.scope_name("web@1")) == "web@1"
    assert scope.container_name("session-1.scope") == ""


def test_properties_carry_the_stop_rules() -> None:
    container = Container(name="a", after=("db",), service=Service(timeout_stop_sec=20))
    found = {name: value for name, _, value in scope.properties(container, stop_signal=3, after=("db",))}
    assert found["KillSignal"] == 3
    assert found["TimeoutStopUSec"] == 35_000_000
    assert found["After"] == ["cleat-containers.target", "cleat-after@db.target"]
    assert found["Delegate"] is True
    assert found["CollectMode"] == "inactive-or-failed"


def test_limit_changes_also_lift_limits() -> None:
    old = Container(name="a", resources=Resources(properties={"memory_max": "1073741824", "cpu_weight": "50"}))
    new = Container(name="a", resources=Resources(properties={"memory_max": "2147483648"}))
    changed = {name: value for name, _, value in scope.limit_changes(old, new)}
    assert changed["MemoryMax"] == 2 << 30
    assert changed["CPUWeight"] == 2**64 - 1, "systemd's word for unset"
    assert scope.limit_changes(new, new) == []


@given(st.text(min_size=0, max_size=40))
def test_object_paths_come_back(name: str) -> None:
    encoded = encode_path(name)
    assert all(c.isascii() and (c.isalnum() or c == "_") for c in encoded)
    assert decode_path(encoded) == name


@pytest.mark.parametrize("path", ["", "/", "/system.slice/cleat.service", "/cleat.slice", "/x/cleat-a.scope/../.."])
def test_no_cgroup_but_our_scopes_is_touched(path: str) -> None:
    assert not cgroup.is_ours(path)
    assert not cgroup.kill(path)


def test_health_counts_failures_in_a_row() -> None:
    health = Health(command=("x",), retries=2)
    progress = judge(Progress(), health, success=False, age=100)
    assert progress.health == STARTING
    progress = judge(progress, health, success=False, age=100)
    assert progress.health == UNHEALTHY
    assert judge(progress, health, success=True, age=100).health == HEALTHY


def test_failures_in_the_start_period_do_not_count() -> None:
    health = Health(command=("x",), retries=1, start_period_sec=30)
    assert judge(Progress(), health, success=False, age=10).health == STARTING
    assert judge(Progress(), health, success=False, age=31).health == UNHEALTHY
    assert judge(Progress(HEALTHY), health, success=False, age=10).health == UNHEALTHY


def test_the_startup_command_comes_first() -> None:
    health = Health(command=("x",), startup_command=("y",), startup_retries=2)
    progress = judge(Progress(), health, success=True, age=0)
    assert progress.health == STARTING
    assert progress.is_started
    failing = judge(judge(Progress(), health, success=False, age=0), health, success=False, age=0)
    assert failing.health == UNHEALTHY
