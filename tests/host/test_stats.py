# SPDX-License-Identifier: Apache-2.0
"""What containers use and the processes in them; without cgroup controllers here, so out of /proc."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.host.hosts import Host

LOOP = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"


@pytest.fixture
def web(clean: Host) -> Host:
    root = clean.rootfs("stats")
    clean.definition("web", f'rootfs = "{root}"\nuser = "www-data"\ncommand = ["/bin/sh", "-c", {json.dumps(LOOP)}]\n')
    clean.reload()
    return clean


def stats(host: Host, *names: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(host.cleat("stats", "--json", *names).stdout)
    return found


def test_a_running_container_has_figures(web: Host) -> None:
    (figures,) = stats(web)
    assert figures["name"] == "web"
    assert figures["id"] == web.status("web")["id"]
    assert figures["pids_current"] == 2
    assert figures["memory_current"] > 100_000
    assert figures["cpu_usage_usec"] >= 0


def test_work_is_counted(web: Host) -> None:
    before = stats(web, "web")[0]["cpu_usage_usec"]
    with web.start(
        "cleat exec web -- sh -c 'i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); done; echo done; sleep 100; :'"
    ) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == b"done\n"
        assert stats(web, "web")[0]["cpu_usage_usec"] > before + 100_000
        rows = json.loads(web.cleat("top", "--json", "web").stdout)
        assert any("1000000" in row["command"] and row["time"] >= 0.1 for row in rows)
        web.cleat("stop", "web")


def test_processes_are_listed_with_their_users(web: Host) -> None:
    rows = json.loads(web.cleat("top", "--json", "web").stdout)
    assert rows[0]["pid"] == web.status("web")["pid"]
    assert {row["user"] for row in rows} == {"www-data"}
    assert rows[1]["command"] == "sleep 1000"
    assert "sleep 1000" in web.cleat("top", "web").stdout


def test_what_a_process_calls_itself_cannot_move_the_cursor(web: Host) -> None:
    with web.start(
        ["cleat", "exec", "web", "--", "sh", "-c", "echo up; sleep 99; :", "\033[2J\nPID"], timeout=20
    ) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == b"up\n"
        assert "\033" not in web.cleat("top", "web").stdout
        web.cleat("stop", "web")


def test_what_is_down_has_no_figures(web: Host) -> None:
    web.cleat("stop", "web")
    assert stats(web) == []
    for verb in ("stats", "top"):
        result = web.cleat(verb, "web", check=False)
        assert result.returncode != 0
        assert "cleat start web" in result.stderr
