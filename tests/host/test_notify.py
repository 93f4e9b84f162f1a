# SPDX-License-Identifier: Apache-2.0
"""sd_notify(3): of containers to the agent, and of the agent to systemd."""

from __future__ import annotations

import pytest

from tests.host.hosts import Host
from tests.host.service import Service, kill_agent, stored

CONTAINER = '[service]\nnotify = "container"\n'


def test_ready_and_status_come_from_the_payload(clean: Host) -> None:
    service = Service(clean, "noti").define(CONTAINER, keys="autostart = false")
    clean.reload()
    with clean.start(["systemctl", "start", "cleat@noti"]) as start:
        service.started()
        service.notify("STATUS=warming up")
        assert (service.status["state"], service.status["ready"]) == ("running", False)
        assert service.status["status_text"] == "warming up"
        service.notify("READY=1\\nSTATUS=serving 3 clients")
        assert start.wait(10) == 0
    assert service.status["ready"] is True
    assert service.event("ready")["STATUS_TEXT"] == "serving 3 clients"
    unit = clean.unit("cleat@noti.service", "StatusText", "ActiveState", "MainPID")
    assert unit["StatusText"] == "serving 3 clients"
    assert unit["MainPID"] == str(service.status["conmon_pid"])
    service.notify("STATUS=\\x1b[31mred")
    assert "\x1b" not in service.status["status_text"]
    assert service.tell("child STATUS=from a child") == ["0"]
    assert service.status["status_text"] == "from a child"


def test_reload_is_shown_in_the_handle(clean: Host) -> None:
    service = Service(clean, "noti").define(CONTAINER, keys="autostart = false", at_start="READY=1")
    clean.reload()
    clean.run(["systemctl", "start", "cleat@noti"])
    service.notify("RELOADING=1")
    assert clean.unit("cleat@noti.service", "ActiveState")["ActiveState"] == "reloading"
    service.notify("READY=1")
    assert clean.unit("cleat@noti.service", "ActiveState")["ActiveState"] == "active"


def test_errno_is_shown_once(clean: Host) -> None:
    service = Service(clean, "noti").define(CONTAINER, at_start="READY=1")
    clean.reload()
    service.notify("STATUS=no database\\nERRNO=13")
    service.notify("ERRNO=13")
    assert service.status["status_text"] == "no database (error 13: Permission denied)"
    service.notify("STATUS=fine again\\nERRNO=0")
    assert service.status["status_text"] == "fine again"


def test_main_pid_and_strangers_are_refused(clean: Host) -> None:
    service = Service(clean, "noti").define(CONTAINER, at_start="READY=1;STATUS=mine")
    clean.reload()
    service.notify("MAINPID=1\\nSTATUS=still mine")
    assert service.status["status_text"] == "still mine"
    entry = service.event("notify-refused")
    assert "MAINPID" in entry["MESSAGE"]
    path = f"/run/cleat/b/{service.status['id']}/notify/notify.sock"
    clean.run(["systemd-notify", "--status=stolen", "--no-block"], env={"NOTIFY_SOCKET": path})
    service.notify("EXTEND_TIMEOUT_USEC=1")
    assert service.status["status_text"] == "still mine"


@pytest.mark.parametrize(("restart", "event", "state"), [("no", "exited", "failed"), ("on-failure", "backoff", "")])
def test_never_ready(clean: Host, restart: str, event: str, state: str) -> None:
    timeout = f'{CONTAINER}restart = "{restart}"\ntimeout_start_sec = "500ms"\n'
    service = Service(clean, "noti").define(timeout, keys="autostart = false")
    clean.reload()
    started = clean.cleat("start", "noti", check=False)
    assert started.returncode != 0
    assert "not ready within" in started.stderr
    service.event(event)
    if state:
        assert service.status["state"] == state


def test_a_start_may_be_extended_over_agents(clean: Host) -> None:
    slow = Service(clean, "slow").define(
        CONTAINER + 'timeout_start_sec = "1s"\n', at_start="EXTEND_TIMEOUT_USEC=60000000"
    )
    with clean.start(["cleat", "reload-agent"]):
        slow.started()
        kill_agent(clean)
        late = Service(clean, "late").define(CONTAINER + 'restart = "no"\ntimeout_start_sec = "1s"\n')
        with clean.start(["cleat", "reload-agent"]):
            late.event("exited")
            assert (slow.status["state"], slow.status["ready"]) == ("running", False)
            slow.notify("READY=1")
            assert slow.status["ready"] is True


def test_stopping_by_itself(clean: Host) -> None:
    service = Service(clean, "noti").define(CONTAINER + 'restart = "no"\n', at_start="READY=1")
    clean.reload()
    service.notify("STOPPING=1\\nSTATUS=saving")
    assert service.status["state"] == "stopping"
    service.tell("exit 0")
    service.event("exited")
    assert (service.status["state"], service.status["exit_code"]) == ("exited", 0)


def test_stopping_without_an_end_is_ended(clean: Host) -> None:
    service = Service(clean, "noti").define(
        CONTAINER + 'restart = "no"\ntimeout_stop_sec = "300ms"\n', at_start="READY=1"
    )
    clean.reload()
    service.notify("STOPPING=1")
    service.event("exited")
    assert (service.status["state"], service.status["exit_code"]) == ("failed", 137)


def test_last_words_are_heard(clean: Host) -> None:
    """What is sent right before the end counts, however late the agent gets to it."""
    toml = CONTAINER + 'restart = "no"\nfile_descriptor_store_max = 4\n'
    service = Service(clean, "noti").define(toml, at_start="READY=1")
    clean.reload()
    agent = clean.unit("cleat.service", "MainPID")["MainPID"]
    clean.run(["kill", "-STOP", agent])
    try:
        assert service.tell("notify STATUS=disk full\\nERRNO=28", "exit 1")[0] == "sent"
    finally:
        clean.run(["kill", "-CONT", agent])
    service.event("exited")
    assert service.status["status_text"] == "disk full (error 28: No space left on device)"


@pytest.mark.parametrize("how", ["kill -9", "restart", "stop and start"])
def test_all_of_it_survives_the_agent(clean: Host, how: str) -> None:
    service = Service(clean, "noti").define(CONTAINER + 'watchdog_sec = "1h"\n', at_start="READY=1")
    clean.reload()
    service.notify("STATUS=before")
    before = service.status
    match how:
        case "kill -9":
            kill_agent(clean)
        case "restart":
            clean.run(["systemctl", "restart", "cleat"])
        case _:
            clean.run(["systemctl", "stop", "cleat"])
            assert service.tell("notify STATUS=nobody listens") == ["sent"]
            clean.run(["systemctl", "start", "cleat"])
            service.notify("EXTEND_TIMEOUT_USEC=1")
            assert service.status["status_text"] == "nobody listens"
            service.notify("STATUS=before")
    for key in ("id", "pid", "conmon_pid", "ready", "status_text", "started_at", "restarts"):
        assert service.status[key] == before[key], key
    service.notify("STATUS=after")
    assert service.status["status_text"] == "after"


def test_runs_leave_nothing_in_the_store(clean: Host) -> None:
    service = Service(clean, "noti").define(CONTAINER, at_start="READY=1")
    clean.reload()
    assert len(stored(clean)) == 1
    for _ in range(5):
        clean.cleat("restart", "noti")
    assert len(stored(clean)) == 1
    clean.remove_definition(service.name)
    clean.reload()
    assert stored(clean) == []


def test_agent_says_how_things_are(clean: Host) -> None:
    Service(clean, "up").define()
    broken = '[service]\nrestart_sec = "1h"\nrestart_max_delay_sec = "1h"\n'
    clean.definition("down", f'rootfs = "/srv/python"\ncommand = ["/nowhere"]\n{broken}')
    clean.reload()
    clean.run(["systemctl", "reload", "cleat"])
    assert clean.unit("cleat.service", "StatusText")["StatusText"] == "1 running, 1 backoff: down"
    assert clean.unit("cleat.service", "ActiveState")["ActiveState"] == "active"


def test_a_slow_reload_gets_the_time_it_needs(clean: Host) -> None:
    """systemd's own limit is shorter than the reload takes; the agent asks for more while its loop turns."""
    drop_in = "/run/systemd/system/cleat.service.d/50-test.conf"
    clean.write(drop_in, "[Service]\nTimeoutStartSec=7\n")
    clean.run(["systemctl", "daemon-reload"])
    try:
        clean.run(["systemctl", "restart", "cleat"])
        service = Service(clean, "slow").define(CONTAINER + 'restart = "no"\ntimeout_start_sec = "9s"\n')
        with clean.start(["systemctl", "reload", "cleat"]) as reload:
            service.started()
            assert reload.wait(30) == 0
        reloaded = clean.journal("CLEAT_EVENT=agent-reloaded")
        assert len(reloaded) == 1
        assert clean.journal("UNIT=cleat.service", "JOB_RESULT=failed") == []
    finally:
        clean.run(["rm", drop_in])
        clean.run(["systemctl", "daemon-reload"])
        clean.run(["systemctl", "restart", "cleat"])


def test_agent_that_cannot_begin_says_why(clean: Host) -> None:
    drop_in = "/run/systemd/system/cleat.service.d/50-test.conf"
    clean.write(drop_in, "[Service]\nReadOnlyPaths=/run/cleat\nRuntimeDirectory=\nRestart=no\n")
    clean.run(["systemctl", "daemon-reload"])
    clean.run(["systemctl", "stop", "cleat"])
    clean.run(["mv", "/run/cleat", "/run/cleat.aside"])
    clean.run(["touch", "/run/cleat"])
    try:
        assert clean.run(["systemctl", "start", "cleat"], check=False).returncode == 1
        found = clean.unit("cleat.service", "StatusErrno", "StatusText")
        assert found["StatusErrno"] == "17"
        assert "cannot create /run/cleat" in found["StatusText"]
    finally:
        clean.run("rm -f /run/cleat; mv /run/cleat.aside /run/cleat")
        clean.run(["rm", drop_in])
        clean.run("systemctl daemon-reload; systemctl reset-failed cleat; systemctl start cleat")


def test_the_first_thing_that_a_program_does_is_heard(clean: Host) -> None:
    """The socket is there before the program: many at once, each with READY=1 as its first act."""
    root = clean.rootfs("notify", "/usr/bin/systemd-notify")
    script = "systemd-notify --ready || exit 9; exec sleep 1000"
    text = f'rootfs = "{root}"\nautostart = false\ncommand = ["/bin/sh", "-c", "{script}"]\n'
    keys = 'notify = "container"\nrestart = "no"\ntimeout_start_sec = "20s"\nkill_signal = "SIGKILL"\n'
    clean.definition("early@", f"{text}[service]\n{keys}")
    clean.reload()
    names = [f"early@{i}" for i in range(40)]
    clean.cleat("start", *names)
    assert {row["state"] for row in clean.status()} == {"running"}
    assert all(row["ready"] for row in clean.status())
