# SPDX-License-Identifier: Apache-2.0
"""`cleat status` and the other views, from the values that the agent sends."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from agent.cli import definitions, names, render, show, status
from agent.definition.model import Diagnostic
from agent.errors import NoSuchContainer
from agent.status import State, Status

NOW = 1_000_000.0


def value(**fields: Any) -> dict[str, Any]:
    """A container as it comes over the bus."""
    made: dict[str, Any] = json.loads(msgspec.json.encode(Status(**{"name": "web", **fields})))
    return made


RUNNING = value(state=State.RUNNING, ready=True, pid=12, conmon_pid=11, started_at=NOW - 61, status_text="serving")


def test_the_table_names_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    status.print_table(
        [
            RUNNING,
            value(name="db", state=State.FAILED, exit_code=1, finished_at=NOW - 7200, restarts=3),
            value(name="evil", state=State.BACKOFF, error="web: \x1b[2J"),
            value(name="later"),
            value(name="slow", state=State.STARTING, pid=100, started_at=NOW),
        ],
        NOW,
    )
    assert capsys.readouterr().out.splitlines() == [
        "NAME   STATE     READY  PID  RESTARTS  SINCE    STATUS",
        "web    running   yes     12         0  1min 1s  serving",
        "db     failed    -        -         3  2h       exit code 1",
        "evil   backoff   -        -         0  -        web: \\x1b[2J",
        "later  inactive  -        -         0  -",
        "slow   starting  no     100         0  0s",
    ]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"state": State.RUNNING, "health": "unhealthy", "status_text": "busy"}, "unhealthy, busy"),
        ({"state": State.RUNNING, "error": "definition refused"}, "definition refused"),
        ({"state": State.FAILED, "oom_killed": True, "exit_code": 137}, "out of memory"),
        ({"state": State.EXITED, "exit_code": 0}, "exit code 0"),
        ({"state": State.INACTIVE, "status_text": "old"}, ""),
    ],
)
def test_the_one_thing_worth_saying(fields: dict[str, Any], text: str) -> None:
    assert status.summary(value(**fields)) == text


def test_details_leave_out_what_is_empty() -> None:
    rows = dict(status.details(RUNNING, NOW))
    assert rows["State"].startswith("running, ready, since ")
    assert rows["State"].endswith("; 1min 1s ago")
    assert rows["PID"] == "12, conmon 11"
    assert "Error" not in rows
    assert "Ended" not in rows


def test_details_of_an_end() -> None:
    rows = dict(status.details(value(state=State.FAILED, exit_code=3, finished_at=NOW - 5, error="no luck"), NOW))
    assert rows["State"] == "failed"
    assert rows["Ended"].startswith("exit code 3, ")
    assert rows["Error"] == "no luck"


@pytest.mark.parametrize("state", list(State))
def test_each_state_has_a_colour_and_a_text(state: State) -> None:
    each = value(state=state)
    assert status.colour(each) in {"", render.RED, render.GREEN, render.YELLOW}
    assert dict(status.details(each, NOW))["State"].startswith(state.value)


def test_a_stop_in_the_middle_of_a_start_is_said() -> None:
    assert status.summary(value(state=State.INACTIVE, exit_code=-1)) == "stopped before it ran"


def test_what_is_up_here_is_what_is_up_everywhere() -> None:
    assert {state.value for state in State if state.is_up} == status._UP  # noqa: SLF001


def test_patterns_mean_what_the_agent_knows() -> None:
    known = ["db", "web@1", "web@2"]
    assert names.matching(["web@*", "db", "web@1"], known) == ["web@1", "web@2", "db"]
    assert names.matching(["unknown"], known) == ["unknown"]
    with pytest.raises(NoSuchContainer, match=r"no container matches 'x\*'"):
        names.matching(["x*"], known)


def test_a_diagnostic_reads_as_the_models_own_text() -> None:
    full = Diagnostic(
        file="/e/web.toml", line=3, column=1, key="image", reason="is odd", hint="mend it", container="web"
    )
    for each in (full, Diagnostic(file="/e/web.toml", reason="is no file")):
        assert definitions.diagnostic_line(msgspec.to_builtins(each)) == str(each)
    warning = msgspec.to_builtins(msgspec.structs.replace(full, warning=True))
    assert definitions.diagnostic_line(warning) == "/e/web.toml:3:1: warning: image: is odd (mend it)"


def test_processor_time() -> None:
    assert [show._clock(seconds) for seconds in (0, 61.9, 3600)] == ["0:00", "1:01", "1:00:00"]  # noqa: SLF001


def test_records_become_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_records(
        [{"name": "web", "memory_bytes": 1536, "cpu": 0.25}, {"name": "db", "memory_bytes": None, "cpu": 10.0}]
    )
    assert capsys.readouterr().out.splitlines() == ["NAME  MEMORY   CPU", "web     1.5K   0.2", "db         -  10.0"]


def test_nested_values_become_indented_lines(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_tree(
        {
            "version": "1",
            "runtimes": {"crun": {"path": "/usr/bin/crun"}},
            "list": ["a", "b\x07"],
            "none": [],
            "on": True,
        }
    )
    assert capsys.readouterr().out.splitlines() == [
        "version: 1",
        "runtimes:",
        "  crun:",
        "    path: /usr/bin/crun",
        "list: a, b\\x07",
        "none: -",
        "on: yes",
    ]
