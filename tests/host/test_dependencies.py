# SPDX-License-Identifier: Apache-2.0
"""after, requires, wants, restart_with, conflicts: what starts and stops with what, and in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.host.test_handles import SERVE, define

if TYPE_CHECKING:
    from tests.host.hosts import Host

SLOW = "trap 'sleep 0.3; exit 0' TERM; while :; do sleep 1000 & wait; done"
ONESHOT = 'type = "oneshot"\nrestart = "no"'


def order(host: Host, event: str, since: str | None = None) -> list[str]:
    return [entry["CLEAT_CONTAINER"] for entry in host.journal(f"CLEAT_EVENT={event}", since=since)]


def states(host: Host) -> dict[str, str]:
    return {row["name"]: row["state"] for row in host.status()}


def test_start_in_order_stop_in_reverse(clean: Host) -> None:
    define(clean, "disk", "sleep 0.3", service=ONESHOT)
    define(clean, "db", SLOW, keys='requires = ["disk"]')
    define(clean, "web", SLOW, keys='requires = ["db"]\nwants = ["cache", "gone"]')
    define(clean, "cache")
    clean.reload()
    clean.cleat("start", "web")
    assert states(clean) == {"cache": "running", "db": "running", "disk": "exited", "web": "running"}
    started = order(clean, "started")
    assert started.index("disk") < started.index("db") < started.index("web")
    assert started.index("cache") < started.index("web")
    finished = clean.journal("CLEAT_EVENT=exited", "CLEAT_CONTAINER=disk")[0]["__MONOTONIC_TIMESTAMP"]
    began = clean.journal("CLEAT_EVENT=started", "CLEAT_CONTAINER=db")[0]["__MONOTONIC_TIMESTAMP"]
    assert int(finished) <= int(began)
    clean.cleat("stop", "db")
    assert order(clean, "stopped") == ["web", "db"]
    assert states(clean)["cache"] == "running"


def test_independent_ones_start_together(clean: Host) -> None:
    for name in ("a", "b", "c"):
        define(clean, name, "sleep 0.5", service=ONESHOT)
    define(clean, "all", "true", keys='requires = ["a", "b", "c"]', service=ONESHOT)
    clean.reload()
    clean.cleat("start", "all")
    last_start = max(
        int(e["__MONOTONIC_TIMESTAMP"])
        for n in "abc"
        for e in clean.journal(f"CLEAT_CONTAINER={n}", "CLEAT_EVENT=started")
    )
    first_end = min(
        int(e["__MONOTONIC_TIMESTAMP"])
        for n in "abc"
        for e in clean.journal(f"CLEAT_CONTAINER={n}", "CLEAT_EVENT=exited")
    )
    assert last_start < first_end


def test_a_failed_requirement_fails_the_start(clean: Host) -> None:
    define(clean, "job", "exit 3", service=ONESHOT)
    define(clean, "web", keys='requires = ["job"]')
    define(clean, "fan", keys='wants = ["job"]')
    clean.reload()
    failed = clean.cleat("start", "web", check=False)
    assert failed.returncode != 0
    assert "job is required and failed" in failed.stderr
    assert clean.run(["systemctl", "start", "cleat@web"], check=False).returncode == 1
    clean.cleat("start", "fan")
    assert states(clean) == {"fan": "running", "job": "failed", "web": "failed"}


def test_restart_with(clean: Host) -> None:
    define(clean, "db")
    define(clean, "web", keys='restart_with = ["db"]')
    define(clean, "idle", keys='restart_with = ["db"]')
    define(clean, "apart", keys='after = ["db"]')
    clean.reload()
    clean.cleat("start", "db", "web", "apart")
    for restart in (["cleat", "restart", "db"], ["systemctl", "restart", "cleat@db"]):
        before = {row["name"]: row["pid"] for row in clean.status()}
        clean.run(restart, timeout=60)
        clean.wait_journal("CLEAT_EVENT=ready", "CLEAT_CONTAINER=web", since=clean.mark)
        after = {row["name"]: row["pid"] for row in clean.status()}
        assert before["db"] != after["db"], restart
        assert after["web"] not in {0, before["web"]}, restart
        assert (after["apart"], after["idle"]) == (before["apart"], 0)
    # So does a change of the definition.
    define(clean, "db", SERVE + " # changed")
    before = {row["name"]: row["pid"] for row in clean.status()}
    clean.reload()
    after = {row["name"]: row["pid"] for row in clean.status()}
    assert after["web"] not in {0, before["web"]}


def test_conflicts(clean: Host) -> None:
    define(clean, "blue")
    define(clean, "green", keys='conflicts = ["blue"]')
    clean.reload()
    for name, other in (("blue", "green"), ("green", "blue"), ("blue", "green")):
        clean.cleat("start", name)
        assert states(clean) == {name: "running", other: "inactive"}
    clean.run(["systemctl", "start", "cleat@green"])
    assert states(clean) == {"blue": "inactive", "green": "running"}


def test_check_names_cycles_and_what_is_missing(clean: Host) -> None:
    define(clean, "a", keys='after = ["b"]')
    define(clean, "b", keys='after = ["c"]')
    define(clean, "c", keys='after = ["a"]')
    define(clean, "d", keys='requires = ["dbb"]')
    define(clean, "e", keys='requires = ["a"]\nconflicts = ["a"]')
    checked = clean.cleat("check", check=False)
    assert checked.returncode == 1
    said = checked.stdout + checked.stderr
    assert "a after b after c after a" in said
    assert 'there is no container "dbb"' in said
    assert '"a" is also required or wanted' in said
