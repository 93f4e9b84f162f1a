# SPDX-License-Identifier: Apache-2.0
"""Watchdogs: the agent's over containers, systemd's over the agent."""

from __future__ import annotations

from tests.host.hosts import Host
from tests.host.service import Service, kill_agent

# Python as process 1 does not get SIGABRT, for which it has no handler: it is killed after timeout_stop_sec.
TOML = '[service]\nnotify = "container"\nrestart = "on-watchdog"\nrestart_sec = "50ms"\ntimeout_stop_sec = "300ms"\n'


def test_missed(clean: Host) -> None:
    service = Service(clean, "dog").define(TOML + 'watchdog_sec = "600ms"\n', at_start="READY=1")
    clean.reload()
    service.event("watchdog")
    service.event("backoff")
    clean.cleat("stop", "dog")


def test_counts_from_readiness(clean: Host) -> None:
    """A start may take longer than the watchdog's period."""
    service = Service(clean, "dog").define(TOML + 'watchdog_sec = "500ms"\n')
    other = Service(clean, "other").define(
        '[service]\nnotify = "container"\nrestart = "no"\ntimeout_start_sec = "1s"\n'
    )
    with clean.start(["cleat", "reload-agent"]):
        service.started()
        other.event("exited")
        assert service.status["state"] == "running"
        assert clean.journal("CLEAT_EVENT=watchdog") == []
        service.notify("READY=1")
        service.event("watchdog")
    clean.cleat("stop", "dog")


def test_triggered(clean: Host) -> None:
    service = Service(clean, "dog").define(TOML, at_start="READY=1")
    clean.reload()
    service.tell("notify WATCHDOG=trigger")
    service.event("watchdog")
    service.event("backoff")


def test_period_of_the_payload_survives_the_agent(clean: Host) -> None:
    service = Service(clean, "dog").define(TOML + 'watchdog_sec = "1h"\n', at_start="READY=1")
    clean.reload()
    service.notify("WATCHDOG_USEC=3000000")
    kill_agent(clean)
    assert clean.journal("CLEAT_EVENT=watchdog") == []
    service.event("watchdog")


def test_paused_containers_are_not_watched(clean: Host) -> None:
    service = Service(clean, "dog").define(TOML + 'watchdog_sec = "3s"\n')
    other = Service(clean, "other").define(
        '[service]\nnotify = "container"\nrestart = "no"\ntimeout_start_sec = "5s"\n'
    )
    with clean.start(["cleat", "reload-agent"]):
        service.started()
        service.tell("notify READY=1", "barrier")
        clean.cleat("pause", "dog")
        other.event("exited")
        assert service.status["state"] == "paused"
        clean.cleat("resume", "dog")
        service.event("watchdog")
    clean.cleat("stop", "dog")


def test_a_hung_agent_is_replaced(clean: Host) -> None:
    drop_in = "/run/systemd/system/cleat.service.d/50-test.conf"
    service = Service(clean, "bystander").define()
    clean.reload()
    before = service.status
    clean.write(drop_in, "[Service]\nWatchdogSec=1\nTimeoutAbortSec=1\n")
    clean.run("systemctl daemon-reload; systemctl restart cleat")
    try:
        agent = clean.unit("cleat.service", "MainPID")["MainPID"]
        mark = clean.cursor()
        clean.run(["kill", "-STOP", agent])
        clean.wait_journal("UNIT=cleat.service", since=mark, where=lambda entry: "Watchdog timeout" in entry["MESSAGE"])
        clean.wait_journal("CLEAT_EVENT=agent-started", since=mark)
        assert clean.unit("cleat.service", "MainPID")["MainPID"] != agent
        assert {**service.status} == {**before}
    finally:
        clean.run(["rm", drop_in])
        clean.run("systemctl daemon-reload; systemctl restart cleat")
