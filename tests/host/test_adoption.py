# SPDX-License-Identifier: Apache-2.0
"""The agent comes and goes, is killed and upgraded; containers stay, and what ended meanwhile is told."""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING

import pytest

from tests.host import samples
from tests.host.hosts import PACKAGE_IN_HOST

if TYPE_CHECKING:
    from tests.host.hosts import Host

HOW = {
    "restart": ["systemctl", "restart", "cleat.service"],
    "kill -9": ["systemctl", "kill", "--signal=KILL", "--kill-whom=main", "cleat.service"],
    "abort": ["systemctl", "kill", "--signal=ABRT", "--kill-whom=main", "cleat.service"],
    "stop, start": ["sh", "-c", "systemctl stop cleat.service && systemctl start cleat.service"],
    "upgrade": ["env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "--install", PACKAGE_IN_HOST],
    "daemon-reexec, restart": ["sh", "-c", "systemctl daemon-reexec && systemctl restart cleat.service"],
}


@pytest.mark.parametrize("how", HOW)
def test_containers_live_on(clean: Host, how: str) -> None:
    samples.run(
        clean,
        web=samples.definition(),
        runc=samples.definition(tables='[runtime]\nname = "runc"\n'),
        paused=samples.definition(),
    )
    clean.cleat("pause", "paused")
    before = {name: samples.identity(clean, name) for name in ("web", "runc", "paused")}
    samples.agent_restarted(clean, *HOW[how])
    assert {name: samples.identity(clean, name) for name in before} == before
    assert samples.states(clean) == {"web": "running", "runc": "running", "paused": "paused"}
    assert clean.journal("CLEAT_EVENT=exited") == []
    clean.cleat("resume", "paused")
    for name in before:
        clean.cleat("stop", name)
        assert clean.status(name)["state"] == "inactive"


def test_what_ended_meanwhile_is_told_and_acted_upon(clean: Host) -> None:
    job = "trap 'exit 32' USR1; while :; do sleep 1000 & wait; done"
    samples.run(
        clean,
        once=samples.service(job, 'restart = "no"'),
        again=samples.service(job, 'restart = "on-failure"'),
        killed=samples.service(job, 'restart = "no"'),
    )
    ids = {name: clean.status(name)["id"] for name in ("once", "again", "killed")}
    pids = {name: clean.status(name)["conmon_pid"] for name in ids}
    clean.run(["systemctl", "stop", "cleat.service"])
    for name, signal in (("once", "USR1"), ("again", "USR1"), ("killed", "KILL")):
        clean.run(f"kill -{signal} $(cat /run/cleat/b/{ids[name]}/pidfile)")
        clean.run(["timeout", "10", "tail", f"--pid={pids[name]}", "-f", "/dev/null"])
    clean.run(["systemctl", "start", "cleat.service"])
    for name, code in (("once", "32"), ("again", "32"), ("killed", "137")):
        assert clean.wait_event(name, "exited")["EXIT_CODE"] == code
    clean.wait_journal(
        "CLEAT_CONTAINER=again", "CLEAT_EVENT=ready", where=lambda e: e["CONTAINER_ID_FULL"] != ids["again"]
    )
    assert samples.states(clean) == {"once": "failed", "again": "running", "killed": "failed"}
    assert clean.status("once")["exit_code"] == 32
    assert clean.status("again")["restarts"] == 1
    assert clean.status("again")["id"] != ids["again"]


def test_definitions_changed_meanwhile_are_acted_upon(clean: Host) -> None:
    samples.run(clean, same=samples.definition(), gone=samples.definition(), other=samples.definition())
    before = {name: samples.identity(clean, name) for name in ("same", "other")}
    clean.run(["systemctl", "stop", "cleat.service"])
    clean.remove_definition("gone")
    samples.add(clean, other=samples.definition("echo new; exec sleep 1000"), new=samples.definition())
    clean.run(["systemctl", "start", "cleat.service"])
    for name in ("other", "new"):
        clean.wait_event(name, "ready", since=clean.mark)
    assert samples.states(clean) == {"same": "running", "other": "running", "new": "running"}
    assert samples.identity(clean, "same") == before["same"]
    assert clean.status("other")["id"] != before["other"][0]


@pytest.mark.parametrize("agent", ["stays", "killed"])
def test_a_stopped_scope_is_stopped_gracefully_and_stays_so(clean: Host, agent: str) -> None:
    script = "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 1000 & wait; done"
    samples.run(clean, web=samples.service(script, 'restart = "always"'), other=samples.definition())
    if agent == "killed":
        samples.agent_restarted(clean)
    clean.run(["systemctl", "stop", "cleat-web.scope"])
    clean.wait_journal("CONTAINER_NAME=web", where=lambda e: e["MESSAGE"].strip() == "asked")
    clean.wait_event("web", "stopped")
    samples.agent_restarted(clean)
    clean.reload()
    assert samples.states(clean) == {"web": "inactive", "other": "running"}
    assert clean.unit("cleat-web.scope", "ActiveState")["ActiveState"] == "inactive"
    clean.cleat("start", "web")
    assert clean.status("web")["state"] == "running"


def test_a_stopped_container_stays_stopped(clean: Host) -> None:
    samples.run(clean, web=samples.service(samples.SERVICE, 'restart = "always"'))
    clean.cleat("stop", "web")
    samples.agent_restarted(clean)
    clean.reload()
    assert clean.status("web")["state"] == "inactive"


def test_stop_on_agent_exit(clean: Host) -> None:
    samples.run(clean, bound=samples.definition(head="stop_on_agent_exit = true"), free=samples.definition())
    before = {name: samples.identity(clean, name) for name in ("bound", "free")}
    clean.run(["systemctl", "stop", "cleat.service"])
    assert clean.unit("cleat-bound.scope", "ActiveState")["ActiveState"] == "inactive"
    assert clean.unit("cleat-free.scope", "ActiveState")["ActiveState"] == "active"
    clean.run(["systemctl", "start", "cleat.service"])
    clean.wait_event("bound", "ready")
    assert samples.identity(clean, "free") == before["free"]
    assert samples.identity(clean, "bound") != before["bound"]


def test_restart_counts_and_delays_survive(clean: Host) -> None:
    samples.add(clean, flap=samples.service("exit 1", 'restart_sec = "1ms"\nrestart_max_delay_sec = "10min"'))
    clean.reload()
    clean.wait_journal("CLEAT_CONTAINER=flap", "CLEAT_EVENT=backoff", where=lambda e: float(e["DELAY_SEC"]) > 1)
    before = clean.status("flap")["restarts"]
    samples.agent_restarted(clean)
    assert clean.status("flap")["restarts"] >= before > 0


def test_killed_in_the_middle_of_many_starts(clean: Host) -> None:
    """Again and again, at any step: in the end everything runs once, and nothing half-made is left."""
    names, dice = [f"c{i}" for i in range(40)], random.Random(5)
    clean.rootfs("base")
    for name in names:
        clean.definition(name, samples.definition("exec sleep 1000"))
    with clean.start(["cleat", "reload-agent"]), contextlib.suppress(Exception):
        for _ in range(8):
            # Not for an event: the point is to hit it anywhere.
            time.sleep(dice.uniform(0.05, 0.4))
            clean.run(["systemctl", "kill", "--signal=KILL", "--kill-whom=main", "cleat.service"], check=False)
    clean.run(["systemctl", "reset-failed", "cleat.service"])
    clean.run(["systemctl", "start", "cleat.service"], timeout=90)
    clean.reload()
    found = clean.status()
    assert {one["name"]: (one["state"], one["ready"]) for one in found} == dict.fromkeys(names, ("running", True))
    ids = sorted(one["id"] for one in found)
    assert clean.run(["ls", "/run/cleat/b"]).stdout.split() == ids
    assert clean.run(["ls", "/var/lib/cleat/overlay"]).stdout.split() == ids
    assert clean.run(["ls", "/run/cleat/runtime/crun"]).stdout.split() == ids
    conmons = sorted(map(int, clean.run(["pgrep", "-x", "conmon"]).stdout.split()))
    assert conmons == sorted(one["conmon_pid"] for one in found)
    scopes = clean.run(["systemctl", "list-units", "--plain", "--no-legend", "cleat-*.scope"]).stdout.splitlines()
    assert sorted(line.split()[0] for line in scopes) == sorted(f"cleat-{name}.scope" for name in names)
    assert samples.faults(clean) == []


def test_a_stop_without_an_agent_is_a_stop_and_an_end_is_not(clean: Host) -> None:
    """The next agent reads in the journal what systemd was asked for; what just ended is restarted."""
    names = ("scope", "handle", "ended")
    samples.add(clean, **dict.fromkeys(names, samples.service(samples.SERVICE, 'restart = "always"')))
    clean.reload()
    for name in names:
        clean.run(["systemctl", "start", f"cleat@{name}"])
    conmon = clean.status("ended")["conmon_pid"]
    clean.run(["systemctl", "stop", "cleat.service"])
    clean.run(["systemctl", "stop", "cleat-scope.scope", "cleat@handle.service"], timeout=60)
    clean.run(["kill", "-9", str(conmon)])
    mark = clean.cursor()
    clean.run(["systemctl", "start", "cleat.service"])
    clean.wait_event("ended", "ready", since=mark)
    for name in ("scope", "handle"):
        clean.wait_event(name, "stopped", since=mark)
        assert clean.status(name)["state"] == "inactive"
    clean.run(["systemctl", "restart", "cleat.service"])
    assert samples.states(clean) == {"scope": "inactive", "handle": "inactive", "ended": "running"}
