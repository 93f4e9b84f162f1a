# SPDX-License-Identifier: Apache-2.0
"""Health checks: what they say, what follows, who waits for them."""

from __future__ import annotations

import pytest

from tests.host.hosts import Host

CHECK = '[health]\ncommand = ["/bin/sh", "-c", "cat /state/health; test -e /state/good"]\n'
QUICK = 'interval_sec = "100ms"\ntimeout_sec = "2s"\nretries = 2\n'


def define(host: Host, toml: str, *, name: str = "patient", service: str = "") -> None:
    host.rootfs("busybox")
    host.run(["mkdir", "-p", f"/run/health/{name}"])
    host.definition(
        name,
        'rootfs = "/srv/busybox"\n'
        """command = ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"]\n"""
        f"[service]\n{service}\n{toml}"
        f'[[mount]]\nsource = "/run/health/{name}"\ntarget = "/state"\n',
    )


@pytest.fixture
def good(clean: Host) -> Host:
    clean.run("rm -rf /run/health; mkdir -p /run/health/patient; touch /run/health/patient/good")
    return clean


def test_ready_when_healthy(good: Host) -> None:
    """The first check is made at once, not an interval later."""
    define(good, CHECK + 'interval_sec = "1h"\n', service='notify = "healthy"')
    good.reload(timeout=10)
    assert (good.status("patient")["ready"], good.status("patient")["health"]) == (True, "healthy")
    good.wait_event("patient", "healthy")


def test_never_healthy_is_never_ready(clean: Host) -> None:
    define(clean, CHECK + QUICK, service='notify = "healthy"\ntimeout_start_sec = "1s"\nrestart = "no"')
    clean.run("rm -f /run/health/patient/good")
    clean.cleat("reload-agent", check=False)
    clean.wait_event("patient", "exited")
    assert "not ready within" in clean.status("patient")["error"]


@pytest.mark.parametrize(
    ("action", "event", "state"),
    [
        ("none", "unhealthy", "running"),
        ("restart", "backoff", ""),
        ("stop", "stopped", "inactive"),
        ("kill", "backoff", ""),
    ],
)
def test_unhealthy(good: Host, action: str, event: str, state: str) -> None:
    define(good, CHECK + QUICK + f'on_failure = "{action}"\n')
    good.reload()
    good.wait_event("patient", "healthy")
    good.run("echo no space >/run/health/patient/health; rm /run/health/patient/good")
    entry = good.wait_event("patient", "unhealthy")
    assert "no space" in entry["MESSAGE"]
    good.wait_event("patient", event)
    if state:
        assert good.status("patient")["state"] == state
    good.run("touch /run/health/patient/good")


def test_recovers(good: Host) -> None:
    define(good, CHECK + QUICK)
    good.reload()
    good.wait_event("patient", "healthy")
    good.run("rm /run/health/patient/good")
    good.wait_event("patient", "unhealthy")
    mark = good.cursor()
    good.run("touch /run/health/patient/good")
    good.wait_event("patient", "healthy", since=mark)
    assert good.status("patient")["health"] == "healthy"


def test_one_that_hangs_counts_as_failed(good: Host) -> None:
    define(
        good,
        '[health]\ncommand = ["/bin/sh", "-c", "sleep 1000"]\n'
        'interval_sec = "50ms"\ntimeout_sec = "200ms"\nretries = 1\n',
    )
    good.reload()
    good.wait_event("patient", "unhealthy")
    good.cleat("stop", "patient")


def test_failures_in_the_start_period_do_not_count(clean: Host) -> None:
    clean.run("rm -rf /run/health")
    define(clean, CHECK + QUICK + 'start_period_sec = "1h"\n')
    define(clean, CHECK + QUICK, name="other")
    clean.reload()
    clean.wait_event("other", "unhealthy")
    assert clean.status("patient")["health"] == "starting"
    clean.run("touch /run/health/patient/good")
    clean.wait_event("patient", "healthy")


def test_startup_command_first(clean: Host) -> None:
    clean.run("rm -rf /run/health")
    startup = 'startup_command = ["/bin/sh", "-c", "test -e /state/up"]\nstartup_interval_sec = "100ms"\n'
    define(clean, CHECK + QUICK + startup, service='notify = "healthy"')
    with clean.start(["cleat", "reload-agent"]):
        clean.wait_event("patient", "started")
        clean.run("touch /run/health/patient/good")
        assert clean.status("patient")["health"] == "starting"
        clean.run("touch /run/health/patient/up")
        clean.wait_event("patient", "ready")


def test_a_startup_that_never_comes_is_a_restart(clean: Host) -> None:
    clean.run("rm -rf /run/health")
    startup = 'startup_command = ["/bin/false"]\nstartup_interval_sec = "50ms"\nstartup_retries = 3\n'
    define(clean, CHECK + QUICK + startup)
    clean.reload()
    clean.wait_event("patient", "unhealthy")
    clean.wait_event("patient", "backoff")


def test_not_while_frozen(good: Host) -> None:
    define(good, CHECK + QUICK)
    define(good, CHECK + QUICK, name="other")
    good.reload()
    good.wait_event("patient", "healthy")
    good.cleat("pause", "patient")
    good.run("rm /run/health/patient/good")
    good.wait_event("other", "unhealthy")
    assert good.status("patient")["health"] == "healthy"
    good.cleat("resume", "patient")
    good.wait_event("patient", "unhealthy")


def test_verdict_survives_the_agent(good: Host) -> None:
    define(good, CHECK + 'interval_sec = "1h"\n')
    good.reload()
    good.wait_event("patient", "healthy")
    good.run(["systemctl", "restart", "cleat"])
    assert good.status("patient")["health"] == "healthy"
