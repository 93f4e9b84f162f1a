# SPDX-License-Identifier: Apache-2.0
"""Restart decisions: systemd.service(5), the table of exit causes and Restart= settings."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.container import outcome
from agent.container.outcome import (
    Cause,
    Outcome,
    Verdict,
    judge,
    restart_delay,
    should_restart,
    start_limit_hit,
    was_stable,
)
from agent.definition.model import Restart, Service, ServiceType

CLEAN = Outcome(code=0)
TERMINATED = Outcome(code=143)
UNCLEAN = Outcome(code=1)
KILLED = Outcome(code=137)
OOM = Outcome(code=137, cause=Cause.OOM, oom_killed=True)
TIMEOUT = Outcome(code=143, cause=Cause.TIMEOUT)
WATCHDOG = Outcome(code=134, cause=Cause.WATCHDOG)
LOST = Outcome(code=-1, cause=Cause.LOST)
ALL = {
    "clean": CLEAN,
    "terminated": TERMINATED,
    "unclean": UNCLEAN,
    "killed": KILLED,
    "oom": OOM,
    "timeout": TIMEOUT,
    "watchdog": WATCHDOG,
    "lost": LOST,
}


@pytest.mark.parametrize(
    ("restart", "restarted"),
    [
        (Restart.NO, set()),
        (Restart.ALWAYS, set(ALL)),
        (Restart.ON_SUCCESS, {"clean", "terminated"}),
        (Restart.ON_FAILURE, {"unclean", "killed", "oom", "timeout", "watchdog", "lost"}),
        (Restart.ON_ABNORMAL, {"killed", "oom", "timeout", "watchdog", "lost"}),
        (Restart.ON_ABORT, {"killed", "oom", "timeout", "lost"}),
        (Restart.ON_WATCHDOG, {"watchdog"}),
    ],
)
def test_restart_table(restart: Restart, restarted: set[str]) -> None:
    service = Service(restart=restart)
    assert {name for name, ended in ALL.items() if should_restart(service, ended)} == restarted


@pytest.mark.parametrize("restart", list(Restart))
def test_what_a_person_stopped_stays_stopped(restart: Restart) -> None:
    assert not should_restart(Service(restart=restart), Outcome(code=1, cause=Cause.STOPPED))


def test_statuses_that_prevent_and_force() -> None:
    service = Service(restart=Restart.ALWAYS, restart_prevent_exit_status=(2,), restart_force_exit_status=(3,))
    assert not should_restart(service, Outcome(code=2))
    assert should_restart(Service(restart=Restart.NO, restart_force_exit_status=(3,)), Outcome(code=3))


def test_a_job_ended_by_a_signal_has_failed() -> None:
    job = Service(type=ServiceType.ONESHOT, success_exit_status=())
    assert not TERMINATED.is_clean(job)
    assert TERMINATED.is_clean(Service())


def test_delay_grows_as_systemd_has_it() -> None:
    service = Service(restart_sec=0.1, restart_max_delay_sec=300, restart_steps=8)
    delays = [restart_delay(service, n) for n in range(10)]
    assert delays[0] == 0.1
    assert delays[8] == delays[9] == 300
    ratios = {round(b / a, 6) for a, b in pairwise(delays[:9])}
    assert len(ratios) == 1


def test_delay_without_steps_is_constant() -> None:
    assert restart_delay(Service(restart_sec=2, restart_steps=0), 50) == 2


@given(st.integers(0, 100), st.floats(0, 1000), st.floats(0, 10000), st.integers(0, 50))
def test_delay_stays_between_its_ends(attempt: int, first: float, last: float, steps: int) -> None:
    service = Service(restart_sec=first, restart_max_delay_sec=last, restart_steps=steps)
    delay = restart_delay(service, attempt)
    assert math.isfinite(delay)
    assert min(first, last) <= delay <= max(first, last, 0.001) + 1e-6


def test_a_long_run_starts_the_delays_afresh() -> None:
    assert not was_stable(5, 0.1)
    assert was_stable(11, 0.1)
    assert not was_stable(100, 60)


def test_start_limit() -> None:
    service = Service(start_limit_burst=3, start_limit_interval_sec=10)
    assert not start_limit_hit(service, [1, 2], 3)
    assert start_limit_hit(service, [1, 2, 3], 4)
    assert not start_limit_hit(service, [1, 2, 3], 20)
    assert not start_limit_hit(Service(), [1.0] * 100, 1)


def test_verdict_on_a_flapping_container() -> None:
    service = Service(restart=Restart.ALWAYS, restart_sec=0.1, restart_max_delay_sec=10, restart_steps=2)
    delays, attempt = [], 0
    for _ in range(4):
        verdict = judge(service, UNCLEAN, attempt=attempt, uptime=0.2, starts=[], now=0)
        delays.append(verdict.delay)
        attempt = verdict.attempt
    assert delays == [0.1, 1.0, 10, 10]
    assert attempt == 4


def test_verdict_after_a_stable_run_counts_afresh() -> None:
    service = Service(restart=Restart.ALWAYS, restart_sec=0.1, restart_max_delay_sec=10, restart_steps=2)
    assert judge(service, UNCLEAN, attempt=4, uptime=1000, starts=[], now=0) == Verdict(delay=0.1, attempt=1)
    # What never ran was not stable, however long it took.
    assert judge(service, UNCLEAN, attempt=4, uptime=None, starts=[], now=0) == Verdict(delay=10, attempt=5)
    once = Service(restart=Restart.NO)
    assert judge(once, UNCLEAN, attempt=4, uptime=1000, starts=[], now=0) == Verdict(attempt=0)


def test_verdict_at_the_start_limit() -> None:
    service = Service(restart=Restart.ALWAYS, start_limit_burst=2, start_limit_interval_sec=10)
    found = judge(service, UNCLEAN, attempt=1, uptime=1, starts=[95, 99], now=100)
    assert found == Verdict(attempt=1, start_limit_hit=True)
    assert judge(service, UNCLEAN, attempt=1, uptime=1, starts=[50, 99], now=100).delay is not None


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (CLEAN, "exited with status 0"),
        (KILLED, "ended by signal SIGKILL"),
        (OOM, "killed by the kernel: out of memory"),
        (Outcome(code=outcome.UNKNOWN_EXIT_CODE), "ended, exit code unknown"),
    ],
)
def test_description(ended: Outcome, words: str) -> None:
    assert ended.describe() == words
