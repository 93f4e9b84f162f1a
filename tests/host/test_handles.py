# SPDX-License-Identifier: Apache-2.0
"""cleat@NAME.service: what systemctl does there happens to the container, what happens to the container shows there."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.host.hosts import Host

SERVE = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"
DEAF = "trap '' TERM; while :; do sleep 1000 & wait; done"


def define(host: Host, name: str, script: str = SERVE, keys: str = "", service: str = "") -> None:
    host.rootfs("bb")
    text = f"""rootfs = "/srv/bb"\nautostart = false\n{keys}\ncommand = ["/bin/sh", "-c", '''{script}''']\n"""
    host.definition(name, f"{text}[service]\n{service}\n")


def handle(host: Host, name: str) -> Mapping[str, str]:
    shown = "ActiveState,SubState,Result,MainPID,ExecMainCode,ExecMainStatus,StatusText,NRestarts"
    return host.unit(f"cleat@{name}.service", shown)


def wait_handle(host: Host, name: str, state: str, *, since: str | None = None, timeout: float = 20.0) -> None:
    """Until PID 1 says that the unit has got there: its own entries carry the unit and the kind of the job's end."""
    done = {
        "active": "39f53479d3a045ac8e11786248231fbf",
        "failed": "d9b373ed55a64feb8242e02dbe79a49c",
        "inactive": "7ad2d189f7e94e70a38c781354912448",
    }[state]
    host.wait_journal(f"UNIT=cleat@{name}.service", f"MESSAGE_ID={done}", since=since, timeout=timeout)


def systemctl(host: Host, *args: str, check: bool = True) -> int:
    return host.run(["systemctl", *args], check=check, timeout=60).returncode


@pytest.fixture
def unit(clean: Host) -> Iterator[Host]:
    yield clean
    clean.run(["systemctl", "reset-failed", "cleat@*.service"], check=False)


def test_start_stop_restart(unit: Host) -> None:
    define(unit, "web")
    unit.reload()
    systemctl(unit, "start", "cleat@web")
    status = unit.status("web")
    assert (status["state"], status["ready"]) == ("running", True)
    first = handle(unit, "web")
    assert (first["ActiveState"], first["MainPID"]) == ("active", str(status["conmon_pid"]))
    systemctl(unit, "restart", "cleat@web")
    assert unit.status("web")["conmon_pid"] != status["conmon_pid"]
    assert handle(unit, "web")["MainPID"] == str(unit.status("web")["conmon_pid"])
    systemctl(unit, "stop", "cleat@web")
    assert unit.status("web")["state"] == "inactive"
    assert systemctl(unit, "is-active", "cleat@web", check=False) == 3
    assert handle(unit, "web")["Result"] == "success"


def test_start_waits_for_readiness_and_says_why_not(unit: Host) -> None:
    define(unit, "late", "sleep 0.4; echo up > /tmp/up; " + SERVE, service='notify = "healthy"')
    unit.run(
        "cat >>/etc/cleat/containers/late.toml",
        stdin='[health]\ncommand = ["/bin/cat", "/tmp/up"]\ninterval_sec = "200ms"\nstart_period_sec = "10s"\n',
    )
    define(unit, "never", "exit 7", service='restart = "no"\nnotify = "container"')
    unit.reload()
    systemctl(unit, "start", "cleat@late")
    assert unit.status("late")["health"] == "healthy"
    assert systemctl(unit, "start", "cleat@never", check=False) == 1
    assert "exited with status 7" in handle(unit, "never")["StatusText"]
    assert systemctl(unit, "is-failed", "--quiet", "cleat@never") == 0
    assert systemctl(unit, "start", "cleat@nosuch", check=False) == 1
    assert "no such container" in handle(unit, "nosuch")["StatusText"]
    unit.run(["systemctl", "stop", "cleat@late"])


@pytest.mark.parametrize(("code", "state", "result"), [(0, "inactive", "success"), (3, "failed", "exit-code")])
def test_the_end_shows(unit: Host, code: int, state: str, result: str) -> None:
    define(unit, "job", f"sleep 0.7; exit {code}", service='restart = "no"')
    unit.reload()
    unit.cleat("start", "job")
    wait_handle(unit, "job", "active")
    wait_handle(unit, "job", state)
    found = handle(unit, "job")
    assert (found["ActiveState"], found["Result"], found["ExecMainStatus"]) == (state, result, str(code))


def test_killed_payload_and_killed_conmon(unit: Host) -> None:
    define(unit, "web", service='restart = "no"')
    unit.reload()
    unit.cleat("start", "web")
    wait_handle(unit, "web", "active")
    unit.cleat("kill", "-s", "KILL", "web")
    wait_handle(unit, "web", "failed")
    found = handle(unit, "web")
    assert (found["Result"], found["ExecMainCode"], found["ExecMainStatus"]) == ("exit-code", "1", "137")
    mark = unit.cursor()
    systemctl(unit, "start", "cleat@web")
    unit.run(["kill", "-9", str(unit.status("web")["conmon_pid"])])
    wait_handle(unit, "web", "failed", since=mark)
    found = handle(unit, "web")
    assert (found["Result"], found["ExecMainCode"], found["ExecMainStatus"]) == ("signal", "2", "9")


def test_a_stop_that_needs_sigkill_is_no_failure(unit: Host) -> None:
    define(unit, "deaf", DEAF, service='timeout_stop_sec = "300ms"')
    unit.reload()
    for stop in (
        ["systemctl", "stop", "cleat@deaf"],
        ["cleat", "stop", "deaf"],
        ["systemctl", "stop", "cleat-deaf.scope"],
    ):
        mark = unit.cursor()
        systemctl(unit, "start", "cleat@deaf")
        unit.run(stop)
        wait_handle(unit, "deaf", "inactive", since=mark)
        assert handle(unit, "deaf")["Result"] == "success", stop
        assert unit.status("deaf")["state"] == "inactive"
    assert unit.run(["pgrep", "-f", "sleep 120"], check=False).returncode == 1


def test_restarts_by_the_agent_show_and_can_be_stopped(unit: Host) -> None:
    """A clean end runs the unit's ExecStop=; that must not stop what is about to be restarted."""
    define(unit, "loop", "sleep 1.5", service='restart = "always"\nrestart_sec = "1s"\nrestart_steps = 0')
    unit.reload()
    systemctl(unit, "start", "cleat@loop")
    first = handle(unit, "loop")["MainPID"]
    unit.wait_event("loop", "backoff")
    mark = unit.cursor()
    unit.wait_event("loop", "ready", since=mark)
    wait_handle(unit, "loop", "active", since=mark)
    assert handle(unit, "loop")["MainPID"] not in {"0", first}
    mark = unit.cursor()
    unit.wait_event("loop", "backoff", since=mark)
    # The unit is starting again while the container waits.
    unit.wait_journal("UNIT=cleat@loop.service", "MESSAGE_ID=7d4958e842da4a758f6c1cdc7b36dcc5", since=mark)
    systemctl(unit, "stop", "cleat@loop")
    assert handle(unit, "loop")["ActiveState"] == "inactive"
    assert unit.status("loop")["state"] == "inactive"


def test_stopping_a_unit_that_is_starting_stops_the_container(unit: Host) -> None:
    define(unit, "slow", service='notify = "container"')
    unit.reload()
    with unit.start(["systemctl", "start", "cleat@slow"]) as starting:
        unit.wait_event("slow", "started")
        systemctl(unit, "stop", "cleat@slow")
        assert starting.wait(20) != 0
    unit.wait_event("slow", "stopped")
    assert unit.status("slow")["state"] == "inactive"
    assert handle(unit, "slow")["ActiveState"] == "inactive"


@pytest.fixture
def watched(unit: Host) -> Iterator[Host]:
    """With seen@UNIT.service as OnFailure= of every handle."""
    folder = "/run/systemd/system"
    unit.write(f"{folder}/seen@.service", "[Service]\nType=oneshot\nExecStart=true\n")
    unit.write(f"{folder}/cleat@.service.d/x.conf", "[Unit]\nOnFailure=seen@%p-%i.service\n")
    unit.run(["systemctl", "daemon-reload"])
    yield unit
    unit.run(f"rm -r {folder}/seen@.service {folder}/cleat@.service.d; systemctl daemon-reload")


def failures(host: Host, name: str) -> int:
    """How often OnFailure= of a handle was triggered."""
    return len(host.journal(f"UNIT=seen@cleat-{name}.service", "MESSAGE_ID=7d4958e842da4a758f6c1cdc7b36dcc5"))


def test_a_run_that_is_followed_by_another_is_no_failure(watched: Host) -> None:
    """As with systemd's own Restart=: failed is who is not restarted."""
    limit = 'start_limit_burst = 3\nstart_limit_interval_sec = "1min"'
    define(watched, "loop", "sleep 0.3; exit 3", service=f'restart_sec = "1s"\nrestart_steps = 0\n{limit}')
    watched.reload()
    systemctl(watched, "start", "cleat@loop")
    watched.wait_event("loop", "backoff")
    watched.wait_journal("UNIT=cleat@loop.service", where=lambda e: "Scheduled restart job" in e["MESSAGE"])
    assert handle(watched, "loop")["ActiveState"] == "activating"
    assert failures(watched, "loop") == 0
    watched.wait_event("loop", "start-limit")
    watched.wait_journal("UNIT=cleat@loop.service", where=lambda e: "Triggering OnFailure" in e["MESSAGE"])
    found = handle(watched, "loop")
    assert (found["ActiveState"], found["Result"], found["ExecMainStatus"]) == ("failed", "exit-code", "3")
    assert found["NRestarts"] == "2"
    assert failures(watched, "loop") == 1
    # A start by hand is a new one, not a restart.
    define(watched, "loop")
    watched.reload()
    systemctl(watched, "start", "cleat@loop")
    assert watched.status("loop")["state"] == "running"
    assert handle(watched, "loop")["NRestarts"] == "0"


def test_what_requires_it_does_not_hear_of_a_restart(watched: Host) -> None:
    define(watched, "db")
    folder = "/run/systemd/system"
    watched.write(
        f"{folder}/app.service",
        "[Unit]\nRequires=cleat@db.service\nAfter=cleat@db.service\n[Service]\nExecStart=sleep infinity\n",
    )
    watched.run(["systemctl", "daemon-reload"])
    watched.reload()
    systemctl(watched, "start", "app.service")
    pid = watched.unit("app.service", "MainPID")["MainPID"]
    for victim in ("pid", "conmon_pid"):
        mark = watched.cursor()
        watched.run(["kill", "-9", str(watched.status("db")[victim])])
        wait_handle(watched, "db", "active", since=mark)
        assert handle(watched, "db")["MainPID"] == str(watched.status("db")["conmon_pid"])
    assert watched.unit("app.service", "MainPID")["MainPID"] == pid
    assert failures(watched, "db") == 0
    systemctl(watched, "stop", "app.service", "cleat@db")
    assert watched.status("db")["state"] == "inactive"
    watched.run(["rm", f"{folder}/app.service"])


def test_a_start_that_fails_is_a_failure_once(watched: Host) -> None:
    """It is told at once, whatever comes after; the unit follows the later runs."""
    define(watched, "flaky", "exit 3", service='notify = "container"\nrestart_sec = "300ms"\nrestart_steps = 0')
    watched.reload()
    assert systemctl(watched, "start", "cleat@flaky", check=False) == 1
    assert handle(watched, "flaky")["StatusText"] or failures(watched, "flaky") == 1
    count = itertools.count(1)
    watched.wait_journal("CLEAT_CONTAINER=flaky", "CLEAT_EVENT=exited", where=lambda _: next(count) == 4)
    assert handle(watched, "flaky")["ActiveState"] == "activating"
    assert failures(watched, "flaky") == 1
    systemctl(watched, "stop", "cleat@flaky")
    assert watched.status("flaky")["state"] == "inactive"


def test_a_definition_that_goes_is_no_failure(watched: Host) -> None:
    define(watched, "web")
    watched.reload()
    systemctl(watched, "start", "cleat@web")
    watched.remove_definition("web")
    mark = watched.cursor()
    watched.reload()
    wait_handle(watched, "web", "inactive", since=mark)
    assert failures(watched, "web") == 0


def test_without_an_agent_an_end_does_not_spin(watched: Host) -> None:
    define(watched, "web", "sleep 1000", service='restart = "no"')
    watched.reload()
    systemctl(watched, "start", "cleat@web")
    systemctl(watched, "stop", "cleat")
    watched.run(["kill", "-9", str(handle(watched, "web")["MainPID"])])
    watched.wait_journal("UNIT=cleat@web.service", where=lambda e: "Triggering OnFailure" in e["MESSAGE"])
    found = handle(watched, "web")
    assert (found["ActiveState"], found["Result"], found["NRestarts"]) == ("failed", "signal", "0")
    assert failures(watched, "web") == 1
    assert watched.unit("cleat.service", "ActiveState")["ActiveState"] == "inactive"
    # A start by hand is one of the agent, too.
    systemctl(watched, "start", "cleat@web")
    assert watched.status("web")["state"] == "running"
    assert handle(watched, "web")["ActiveState"] == "active"


def killed(host: Host) -> None:
    mark = host.cursor()
    systemctl(host, "kill", "--signal=KILL", "cleat")
    host.wait_journal("CLEAT_EVENT=agent-started", since=mark)


def restarted(host: Host) -> None:
    systemctl(host, "restart", "cleat")


def stopped(host: Host) -> None:
    systemctl(host, "stop", "cleat")
    assert handle(host, "slow")["ActiveState"] == handle(host, "loop")["ActiveState"] == "activating"
    systemctl(host, "start", "cleat")


def wait_for_client(host: Host, name: str) -> None:
    """Until the agent tells the unit of a container in back-off what it waits for."""
    text = f"systemctl show --value --property=StatusText cleat@{name}"
    host.run(f"until {text} | grep -q 'to be restarted: exit code 3'; do sleep 0.05; done", timeout=20)


@pytest.mark.parametrize("end", [killed, restarted, stopped])
def test_a_unit_that_waits_outlives_the_agent(watched: Host, end: Callable[[Host], None]) -> None:
    """For its container to be ready, or to be restarted."""
    watched.run("rm -rf /srv/shared; mkdir /srv/shared")
    shared = '[[mount]]\ntype = "bind"\nsource = "/srv/shared"\ntarget = "/mnt"\n'
    check = '[health]\ncommand = ["/bin/cat", "/mnt/ok"]\ninterval_sec = "200ms"\nstart_period_sec = "1min"\n'
    define(watched, "slow", service=f'notify = "healthy"\n{shared}{check}')
    define(watched, "loop", f"test -e /mnt/ok || exit 3; {SERVE}", service=f'restart_sec = "3s"\n{shared}')
    watched.reload()
    systemctl(watched, "start", "--no-block", "cleat@slow")
    watched.wait_event("slow", "started")
    pid = handle(watched, "slow")["MainPID"]
    systemctl(watched, "start", "cleat@loop")
    watched.wait_event("loop", "backoff")
    wait_for_client(watched, "loop")
    end(watched)
    assert handle(watched, "slow")["MainPID"] == pid
    mark = watched.cursor()
    watched.run("touch /srv/shared/ok")
    wait_handle(watched, "slow", "active", since=mark)
    watched.wait_journal(
        "UNIT=cleat@loop.service",
        "MESSAGE_ID=39f53479d3a045ac8e11786248231fbf",
        since=mark,
        where=lambda _: handle(watched, "loop")["MainPID"] == str(watched.status("loop")["conmon_pid"]),
    )
    assert failures(watched, "slow") == failures(watched, "loop") == 0
    systemctl(watched, "stop", "cleat@slow", "cleat@loop")
    assert [watched.status(name)["state"] for name in ("slow", "loop")] == ["inactive", "inactive"]


def test_a_unit_that_waits_is_stopped_while_there_is_no_agent(watched: Host) -> None:
    """By systemctl, or because its definition goes."""
    for name in ("loop", "gone"):
        define(watched, name, "exit 3", service='restart_sec = "1min"')
    watched.reload()
    for name in ("loop", "gone"):
        systemctl(watched, "start", f"cleat@{name}")
        wait_for_client(watched, name)
    systemctl(watched, "stop", "cleat")
    systemctl(watched, "stop", "cleat@loop")
    watched.remove_definition("gone")
    mark = watched.cursor()
    systemctl(watched, "start", "cleat")
    assert watched.status("loop")["state"] == "inactive"
    wait_handle(watched, "gone", "inactive", since=mark)
    assert handle(watched, "loop")["ActiveState"] == "inactive"
    assert failures(watched, "loop") == failures(watched, "gone") == 0


def test_oneshot(unit: Host) -> None:
    define(unit, "job", "sleep 0.3; test -e /ok", service='type = "oneshot"\nrestart = "no"')
    unit.reload()
    unit.run(["touch", "/srv/bb/ok"])
    systemctl(unit, "start", "cleat@job")
    assert unit.status("job")["state"] == "exited"
    unit.run(["rm", "/srv/bb/ok"])
    mark = unit.cursor()
    assert systemctl(unit, "start", "cleat@job", check=False) == 1
    assert unit.status("job")["exit_code"] == 1
    wait_handle(unit, "job", "failed", since=mark)


def test_units_that_name_it(unit: Host) -> None:
    """OnFailure=, Requires= with After=, PartOf= and a timer."""
    define(unit, "db", "sleep 0.3; " + SERVE, service='restart = "no"')
    define(unit, "job", "echo ran", service='type = "oneshot"\nrestart = "no"')
    folder = "/run/systemd/system"
    unit.write(f"{folder}/seen.service", "[Service]\nType=oneshot\nExecStart=true\nRemainAfterExit=yes\n")
    unit.write(f"{folder}/cleat@db.service.d/x.conf", "[Unit]\nOnFailure=seen.service\n")
    unit.write(
        f"{folder}/app.service",
        "[Unit]\nRequires=cleat@db.service\nAfter=cleat@db.service\nPartOf=cleat@db.service\n"
        "[Service]\nExecStartPre=sh -c 'cleat status db | grep -q running'\nExecStart=sleep infinity\n",
    )
    unit.write(f"{folder}/job.timer", "[Timer]\nOnActiveSec=300ms\nAccuracySec=1ms\nUnit=cleat@job.service\n")
    unit.run(["systemctl", "daemon-reload"])
    unit.reload()
    systemctl(unit, "start", "app.service", "job.timer")
    assert unit.status("db")["state"] == "running"
    unit.wait_event("job", "exited")
    pid = unit.unit("app.service", "MainPID")["MainPID"]
    mark = unit.cursor()
    systemctl(unit, "restart", "cleat@db")
    unit.wait_journal("UNIT=app.service", "MESSAGE_ID=39f53479d3a045ac8e11786248231fbf", since=mark)
    assert unit.unit("app.service", "MainPID")["MainPID"] not in {"0", pid}
    unit.cleat("kill", "-s", "KILL", "db")
    unit.wait_journal("UNIT=seen.service", "MESSAGE_ID=39f53479d3a045ac8e11786248231fbf")
    systemctl(unit, "stop", "cleat@db", "app.service", "seen.service", "job.timer")
    unit.run(f"rm -r {folder}/seen.service {folder}/cleat@db.service.d {folder}/app.service {folder}/job.timer")
    unit.run(["systemctl", "daemon-reload"])


def test_the_payload_speaks_through_it(unit: Host) -> None:
    unit.rootfs("notify", "/usr/bin/systemd-notify")
    script = "systemd-notify --ready --status='serving 3'; " + SERVE
    text = f"""rootfs = "/srv/notify"\nautostart = false\ncommand = ["/bin/sh", "-c", '''{script}''']\n"""
    unit.definition("talk", text + '[service]\nnotify = "container"\n')
    unit.reload()
    systemctl(unit, "start", "cleat@talk")
    assert handle(unit, "talk")["StatusText"] == "serving 3"
    systemctl(unit, "stop", "cleat@talk")


def test_it_survives_the_agent(unit: Host) -> None:
    define(unit, "web")
    unit.reload()
    systemctl(unit, "start", "cleat@web")
    before = handle(unit, "web")
    unit.run(["systemctl", "restart", "cleat"])
    assert handle(unit, "web") == before
    # One that came up without its unit is found again by the next agent.
    define(unit, "other")
    unit.reload()
    unit.run(["systemctl", "mask", "--runtime", "cleat@other.service"])
    unit.cleat("start", "other")
    unit.run(["systemctl", "unmask", "--runtime", "cleat@other.service"])
    mark = unit.cursor()
    unit.run(["systemctl", "restart", "cleat"])
    wait_handle(unit, "other", "active", since=mark)
    systemctl(unit, "stop", "cleat@web", "cleat@other")
    assert [unit.status(name)["state"] for name in ("web", "other")] == ["inactive", "inactive"]


def test_without_the_agent_a_stop_is_systemds(unit: Host) -> None:
    define(unit, "web")
    unit.reload()
    systemctl(unit, "start", "cleat@web")
    systemctl(unit, "stop", "cleat")
    systemctl(unit, "stop", "cleat@web")
    assert unit.unit("cleat-web.scope", "ActiveState")["ActiveState"] == "inactive"
    systemctl(unit, "start", "cleat")
    assert unit.status("web")["state"] in {"exited", "inactive"}


def test_reload_and_kill(unit: Host) -> None:
    script = "trap 'echo again' HUP; trap 'echo one' USR1; " + SERVE
    define(unit, "web", script, service='reload_signal = "SIGHUP"')
    unit.reload()
    systemctl(unit, "start", "cleat@web")
    systemctl(unit, "reload", "cleat@web")
    unit.wait_journal("CONTAINER_NAME=web", where=lambda entry: entry["MESSAGE"].strip() == "again")
    # conmon hands on the signals that ask for an end.
    mark = unit.cursor()
    systemctl(unit, "kill", "cleat@web")
    wait_handle(unit, "web", "inactive", since=mark)


def test_enable_and_instances(unit: Host) -> None:
    define(unit, "work@")
    unit.reload()
    systemctl(unit, "enable", "--now", "cleat@work@1")
    assert unit.status("work@1")["state"] == "running"
    assert unit.run(["systemctl", "is-enabled", "cleat@work@1"]).stdout.strip() == "enabled"
    assert unit.exists("/etc/systemd/system/multi-user.target.wants/cleat@work@1.service")
    systemctl(unit, "disable", "--now", "cleat@work@1")
    assert unit.status("work@1")["state"] == "inactive"


def test_journalctl_of_the_unit(unit: Host) -> None:
    define(unit, "web")
    unit.reload()
    systemctl(unit, "start", "cleat@web")
    systemctl(unit, "stop", "cleat@web")
    unit.run(["journalctl", "--sync"])
    said = unit.run(["journalctl", "-u", "cleat@web", "-o", "cat"]).stdout
    assert re.search(r"web started\n(.*\n)*web stopped", said)
