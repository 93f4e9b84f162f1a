# SPDX-License-Identifier: Apache-2.0
"""How containers end, what is said about it, and what follows: restarts, delays, limits, oneshots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.host import samples

if TYPE_CHECKING:
    from tests.host.hosts import Host

GO = "until [ -e /go ]; do sleep 0.02; done; "
"""Waits for the test's word: a file in the container's own root."""


def release(host: Host, name: str) -> None:
    host.run(["touch", f"/proc/{host.status(name)['pid']}/root/go"])


@pytest.mark.parametrize(
    ("script", "code", "state"),
    [
        ("exit 0", 0, "exited"),
        ("exit 1", 1, "failed"),
        ("exit 32", 32, "failed"),
        ("kill -KILL $$", 137, "failed"),
        ("kill -SEGV $$", 139, "failed"),
        ("kill -TERM $$", 143, "exited"),
        ("exit 255", 255, "failed"),
    ],
)
def test_exit_codes(clean: Host, script: str, code: int, state: str) -> None:
    # A shell is pid 1 of its own: signals without a handler do not end it, so a child does.
    inner = f"sh -c '{script}'; exit $?" if "kill" in script else script
    samples.add(clean, job=samples.service(f"{GO}{inner}", 'restart = "no"'))
    clean.reload()
    with clean.start(["cleat", "wait", "job"]) as waiting:
        release(clean, "job")
        entry = clean.wait_event("job", "exited")
        assert waiting.communicate(timeout=20)[0].decode() == f"{code}\n"
        assert waiting.returncode == code
    assert entry["EXIT_CODE"] == str(code)
    status = clean.status("job")
    assert (status["exit_code"], status["state"], status["ready"], status["pid"]) == (code, state, False, 0)
    assert status["finished_at"] >= status["started_at"] > 0
    assert clean.cleat("status", "job", check=False).returncode == 3
    assert clean.cleat("wait", "job", check=False).returncode == code


POLICIES = {
    "no": {"clean": False, "code": False, "signal": False},
    "on-success": {"clean": True, "code": False, "signal": False},
    "on-failure": {"clean": False, "code": True, "signal": True},
    "on-abnormal": {"clean": False, "code": False, "signal": True},
    "on-abort": {"clean": False, "code": False, "signal": True},
    "on-watchdog": {"clean": False, "code": False, "signal": False},
    "always": {"clean": True, "code": True, "signal": True},
}
ENDINGS = {"clean": "exit 0", "code": "exit 3", "signal": "sh -c 'kill -KILL $$'; exit 137"}


def test_restart_policies_are_systemds(clean: Host) -> None:
    cases = {f"{policy}-{how}": (policy, how) for policy in POLICIES for how in ENDINGS}
    clean.rootfs("base")
    for name, (policy, how) in cases.items():
        keys = f'restart = "{policy}"\nrestart_sec = "5min"\nrestart_steps = 0\n'
        clean.definition(name, samples.service(ENDINGS[how], keys))
    clean.reload()
    for name in cases:
        clean.wait_journal(f"CLEAT_CONTAINER={name}", where=lambda e: e["CLEAT_EVENT"] in ("exited", "failed-to-start"))
    found = samples.states(clean)
    for name, (policy, how) in cases.items():
        wanted = "backoff" if POLICIES[policy][how] else ("exited" if how == "clean" else "failed")
        assert found[name] == wanted, name


def test_success_exit_status_counts_as_success(clean: Host) -> None:
    samples.add(clean, job=samples.service("exit 7", "success_exit_status = [7]"))
    clean.reload()
    clean.wait_event("job", "exited")
    assert clean.status("job")["state"] == "exited"


def test_the_delay_grows_to_its_maximum(clean: Host) -> None:
    keys = 'restart_sec = "10ms"\nrestart_max_delay_sec = "160ms"\nrestart_steps = 4\n'
    samples.add(clean, flap=samples.service("exit 1", keys))
    clean.reload()
    clean.wait_journal("CLEAT_CONTAINER=flap", "CLEAT_EVENT=backoff", where=lambda e: e["DELAY_SEC"] == "0.16")
    mark = clean.cursor()
    clean.wait_event("flap", "backoff", since=mark)
    clean.cleat("stop", "flap")
    delays = [float(e["DELAY_SEC"]) for e in clean.journal("CLEAT_CONTAINER=flap", "CLEAT_EVENT=backoff")]
    assert delays[:5] == [0.01, 0.02, 0.04, 0.08, 0.16]
    assert set(delays[5:]) == {0.16}
    assert clean.status("flap")["restarts"] >= 5
    assert clean.status("flap")["state"] == "inactive"


def test_a_stop_ends_the_waiting_and_a_start_cuts_it_short(clean: Host) -> None:
    samples.add(clean, flap=samples.service("exit 1", 'restart_sec = "10min"\nrestart_steps = 0\n'))
    clean.reload()
    clean.wait_event("flap", "backoff")
    mark = clean.cursor()
    assert clean.cleat("start", "flap", check=False).returncode in (0, 1, 125)
    clean.wait_event("flap", "started", since=mark)
    clean.wait_event("flap", "backoff", since=mark)
    clean.cleat("stop", "flap")
    assert clean.status("flap")["state"] == "inactive"


def test_the_start_limit(clean: Host) -> None:
    keys = 'restart_sec = "1ms"\nrestart_steps = 0\nstart_limit_burst = 3\nstart_limit_interval_sec = "1h"\n'
    samples.add(clean, flap=samples.service("exit 1", keys))
    clean.reload()
    clean.wait_event("flap", "start-limit")
    assert len(clean.journal("CLEAT_CONTAINER=flap", "CLEAT_EVENT=started")) == 3
    assert clean.status("flap")["state"] == "failed"


def test_oneshot_is_waited_for(clean: Host) -> None:
    job = f"{GO}exit 0"
    samples.add(
        clean,
        job=samples.service(job, 'type = "oneshot"'),
        web=samples.definition(head='after = ["job"]\nrequires = ["job"]'),
    )
    with clean.start(["cleat", "reload-agent"]) as reloading:
        clean.wait_event("job", "started")
        assert samples.states(clean) == {"job": "running", "web": "inactive"}
        release(clean, "job")
        reloading.communicate(timeout=30)
    assert samples.states(clean) == {"job": "exited", "web": "running"}


def test_a_failed_oneshot_keeps_its_dependents_down(clean: Host) -> None:
    samples.add(
        clean,
        job=samples.service("exit 5", 'type = "oneshot"\nrestart = "no"'),
        web=samples.definition(head='after = ["job"]\nrequires = ["job"]'),
    )
    clean.reload()
    assert samples.states(clean) == {"job": "failed", "web": "failed"}
    assert "job" in clean.status("web")["error"]
    clean.wait_event("web", "dependency-failed")


def test_a_stop_that_is_ignored_ends_in_a_kill(clean: Host) -> None:
    script = "trap '' TERM; echo up; while :; do sleep 1000 & wait; done"
    samples.run(clean, deaf=samples.service(script, 'timeout_stop_sec = "200ms"'))
    clean.cleat("stop", "deaf")
    clean.wait_event("deaf", "stop-signal-ignored")
    status = clean.status("deaf")
    assert (status["state"], status["exit_code"]) == ("inactive", 137)


def test_runtime_max_sec(clean: Host) -> None:
    samples.run(clean, job=samples.service(samples.SERVICE, 'runtime_max_sec = "300ms"\nrestart = "no"'))
    clean.wait_event("job", "runtime-limit")
    clean.wait_journal("CLEAT_CONTAINER=job", where=lambda e: e["CLEAT_EVENT"] in ("exited", "stopped"))
    assert clean.status("job")["state"] == "failed"
