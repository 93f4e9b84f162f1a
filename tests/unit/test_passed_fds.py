# SPDX-License-Identifier: Apache-2.0
"""LISTEN_FDS as the service manager, or somebody less careful, passes it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from agent.systemd.passed_fds import take_listen_fds

OURS = str(os.getpid())

CHILD = """
import json, os, sys
count, names = sys.argv[1:]
environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count, "LISTEN_FDNAMES": names, "HOME": "/"}
for fd in (3, 4):
    os.dup2(0, fd)
from agent.systemd.passed_fds import take_listen_fds
taken = take_listen_fds(environment)
found = [(t.name, t.fd, os.get_inheritable(t.fd)) for t in taken]
print(json.dumps([found, environment, take_listen_fds(environment)]))
"""


def in_child(count: str, names: str) -> list[object]:
    """What a process takes that was passed fds 3 and 4."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, count, names],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        timeout=30,
        check=True,
    )
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


def test_takes_fds_with_names_once() -> None:
    assert in_child("2", "http:notify-web") == [
        [["http", 3, False], ["notify-web", 4, False]],
        {"HOME": "/"},
        [],
    ]


@pytest.mark.parametrize("names", ["", "only-one", "a:b:c", ":::::"])
def test_names_of_a_wrong_number_are_unknown(names: str) -> None:
    assert in_child("2", names)[0] == [["unknown", 3, False], ["unknown", 4, False]]


@pytest.mark.parametrize("pid", ["", "1", "0", "-1", "x", f"{OURS}x", f" {OURS}"])
def test_fds_of_another_process_are_not_touched(pid: str) -> None:
    environment = {"LISTEN_PID": pid, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "LISTEN_PIDFDID": "9"}
    assert take_listen_fds(environment) == []
    assert environment == {}


@pytest.mark.parametrize("count", ["", "0", "-1", "2x", "\u0661", "9" * 30])
def test_hostile_counts(count: str) -> None:
    assert take_listen_fds({"LISTEN_PID": OURS, "LISTEN_FDS": count}) == []


def test_a_count_beyond_all_fds_is_bounded() -> None:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    found = in_child("999999999", "")[0]
    assert isinstance(found, list)
    assert found[:2] == [["unknown", 3, False], ["unknown", 4, False]]
    assert len(found) < soft
