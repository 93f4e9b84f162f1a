# SPDX-License-Identifier: Apache-2.0
"""What the results of a health check mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.container.health import HEALTHY, STARTING, UNHEALTHY, Progress, judge
from agent.definition.model import Health

CHECK = Health(command=("/check",), retries=3, start_period_sec=10)
STARTUP = Health(command=("/check",), retries=1, startup_command=("/up",), startup_retries=2)


def after(health: Health, results: str, *, age: float = 100.0) -> Progress:
    """The standing after results: + for a success, - for a failure."""
    progress = Progress()
    for result in results:
        progress = judge(progress, health, success=result == "+", age=age)
    return progress


@pytest.mark.parametrize(
    ("results", "health"),
    [("", STARTING), ("+", HEALTHY), ("--", STARTING), ("---", UNHEALTHY), ("---+", HEALTHY), ("+--", HEALTHY)],
)
def test_failures_in_a_row(results: str, health: str) -> None:
    assert after(CHECK, results).health == health


def test_a_success_starts_the_count_afresh() -> None:
    assert after(CHECK, "+--+--").health == HEALTHY
    assert after(CHECK, "+--+---").health == UNHEALTHY


def test_start_period() -> None:
    assert after(CHECK, "-" * 50, age=9.9).health == STARTING
    assert after(CHECK, "+---", age=5).health == UNHEALTHY


@pytest.mark.parametrize(
    ("results", "health", "is_started"),
    [
        ("-", STARTING, False),
        ("--", UNHEALTHY, False),
        ("+", STARTING, True),
        ("-++", HEALTHY, True),
        ("+-", UNHEALTHY, True),
    ],
)
def test_startup_command(results: str, health: str, *, is_started: bool) -> None:
    progress = after(STARTUP, results)
    assert (progress.health, progress.is_started) == (health, is_started)


def test_startup_without_a_limit_never_fails() -> None:
    patient = Health(command=("/check",), startup_command=("/up",), startup_retries=0)
    assert after(patient, "-" * 500).health == STARTING


@given(st.text("+-", max_size=50), st.floats(0, 100))
def test_last_result_decides_what_can_be_said(results: str, age: float) -> None:
    progress = after(CHECK, results, age=age)
    if results.endswith("+"):
        assert progress == Progress(HEALTHY, 0, is_started=True)
    assert (progress.health == STARTING) <= ("+" not in results)
