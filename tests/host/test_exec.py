# SPDX-License-Identifier: Apache-2.0
"""Commands in running containers: their output, input, exit codes and ends, on real conmons and runtimes."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from subprocess import Popen

    from tests.host.hosts import Host

BUS = ["busctl", "call", "org.cleat.Agent1", "/org/cleat/Agent1", "org.cleat.Agent1.Manager"]
LOOP = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"
NOTHING_LEFT = "! find /run/cleat/b -path '*/exec/*' | grep . && ! pgrep -f 'exec-process-spe[c]'"


@pytest.fixture(params=["crun", "runc"])
def web(clean: Host, request: pytest.FixtureRequest) -> Host:
    start(clean, "web", runtime=request.param)
    return clean


@pytest.fixture
def crun(clean: Host) -> Host:
    start(clean, "web")
    return clean


def start(host: Host, name: str, *, runtime: str = "crun", more: str = "", command: str = LOOP) -> None:
    root = host.rootfs("exec")
    host.definition(
        name,
        f'rootfs = "{root}"\nruntime.name = "{runtime}"\ncommand = ["/bin/sh", "-c", {json.dumps(command)}]\n{more}\n',
    )
    host.reload()


def create(host: Host, **options: object) -> str:
    """A session that waits for its start; returns its id."""
    answer = host.run([*BUS, "Exec", "ss", "web", json.dumps(options)]).stdout
    return answer.split('"')[1]


def line(process: Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode()


def test_output_error_output_and_exit_code(web: Host) -> None:
    result = web.cleat("exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (result.stdout, result.stderr, result.returncode) == ("out\n", "err\n", 7)
    web.run(NOTHING_LEFT)


@pytest.mark.parametrize(("program", "code"), [("/nope", 127), ("nope", 127), ("/etc/passwd", 126), ("/etc", 126)])
def test_what_cannot_be_executed_has_its_exit_code(web: Host, program: str, code: int) -> None:
    result = web.cleat("exec", "web", "--", program, check=False)
    assert result.returncode == code, result.stderr
    assert program in result.stderr
    web.run(NOTHING_LEFT)


def test_a_signal_is_128_and_its_number(web: Host) -> None:
    assert web.cleat("exec", "web", "--", "sh", "-c", "kill -9 $$", check=False).returncode == 137


def test_input_arrives_byte_by_byte(web: Host) -> None:
    data = os.urandom(1_500_000)
    result = web.cleat("exec", "-i", "web", "--", "sha256sum", stdin=data)
    assert result.stdout.split()[0] == hashlib.sha256(data).hexdigest()
    echoed = web.run(["sh", "-c", "cleat exec -i web -- cat | sha256sum"], stdin=data)
    assert echoed.stdout.split()[0] == hashlib.sha256(data).hexdigest()


def test_without_interactive_there_is_no_input(crun: Host) -> None:
    assert crun.cleat("exec", "web", "--", "cat", stdin=b"unread\n").stdout == ""


def test_fifty_at_once_each_have_their_own_end(web: Host) -> None:
    script = (
        "for i in $(seq 50); do "
        '(cleat exec web -- sh -c "echo $i; exit $i" >/tmp/out.$i; echo $? >/tmp/code.$i) & done;'
        "wait; for i in $(seq 50); do cat /tmp/out.$i /tmp/code.$i; rm /tmp/out.$i /tmp/code.$i; done"
    )
    numbers = web.run(script, timeout=90).stdout.split()
    assert numbers == [str(i) for i in range(1, 51) for _ in (1, 2)]
    web.run(NOTHING_LEFT)


def test_a_terminal_is_one_and_has_the_size(web: Host) -> None:
    script = "stty rows 33 cols 99 </dev/tty; cleat exec -it web -- sh -c 'tty; stty size'"
    shown = web.run(["script", "-qec", f'sh -c "{script}"', "/dev/null"]).stdout
    assert "/dev/pts/" in shown
    assert "33 99" in shown


def test_user_folder_variables_and_capabilities(web: Host) -> None:
    command = "id -u; id -g; pwd; echo $COLOUR $HOME; grep CapEff /proc/self/status"
    asked = ["-u", "www-data", "-w", "/srv", "-e", "COLOUR=green", "--cap-add", "NET_ADMIN"]
    shown = web.cleat("exec", *asked, "web", "--", "sh", "-c", command).stdout.splitlines()
    assert shown[:4] == ["33", "33", "/srv", "green /srv"]
    assert int(shown[4].split()[1], 16) == 1 << 12


def test_an_unknown_user_is_named(crun: Host) -> None:
    result = crun.cleat("exec", "-u", "nobodyhere", "web", "--", "id", check=False)
    assert "nobodyhere" in result.stderr
    assert result.returncode == 2


def test_a_user_is_looked_up_in_the_container_of_now(crun: Host) -> None:
    crun.cleat("exec", "web", "--", "sh", "-c", "echo late:x:4711:4711::/:/bin/sh >>/etc/passwd")
    assert crun.cleat("exec", "-u", "late", "web", "--", "id", "-u").stdout == "4711\n"


def test_a_passwd_that_leads_out_is_not_followed(crun: Host) -> None:
    crun.run("echo fooled:x:4712:4712::/:/bin/sh >/tmp/passwd")
    crun.cleat("exec", "web", "--", "sh", "-c", "rm /etc/passwd; ln -s ../../../../../tmp/passwd /etc/passwd")
    assert crun.cleat("exec", "-u", "fooled", "web", "--", "id", check=False).returncode == 2


def test_sigkill_ends_what_ignores_sigterm(web: Host) -> None:
    with web.start(
        ["cleat", "exec", "web", "--", "sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"]
    ) as client:
        assert line(client) == "up\n"
        session = web.run("basename /run/cleat/b/*/exec/*").stdout.strip()
        web.run([*BUS, "ExecKill", "si", session, "15"])
        assert client.poll() is None
        web.run([*BUS, "ExecKill", "si", session, "9"])
        assert client.wait(10) == 137
    web.run(NOTHING_LEFT)


def test_a_detached_command_is_watched_to_its_end(web: Host) -> None:
    session = web.cleat("exec", "-d", "web", "--", "sh", "-c", "exit 3").stdout.strip()
    entry = web.wait_journal("CLEAT_EVENT=exec", f"CLEAT_SESSION={session}", where=lambda e: "EXIT_CODE" in e)
    assert entry["EXIT_CODE"] == "3"
    web.run(NOTHING_LEFT)


def test_a_session_that_is_taken_back_never_runs(web: Host) -> None:
    session = create(web, command=["sh", "-c", "echo bad >/tmp/bad"])
    web.run([*BUS, "ExecKill", "si", session, "9"])
    web.run(NOTHING_LEFT)
    assert web.cleat("exec", "web", "--", "ls", "/tmp").stdout == ""
    assert "no such exec session" in web.run([*BUS, "ExecStart", "s", session], check=False).stderr


def test_a_waiting_session_ends_with_the_agent(web: Host) -> None:
    create(web, command=["sh", "-c", "echo bad >/tmp/bad"])
    web.run(["systemctl", "restart", "cleat.service"])
    web.run(NOTHING_LEFT)
    assert web.cleat("exec", "web", "--", "ls", "/tmp").stdout == ""
    web.cleat("restart", "web")


@pytest.mark.parametrize("how", ["killed", "restarted"])
def test_the_exit_code_comes_back_over_a_restart_of_the_agent(web: Host, how: str) -> None:
    with web.start(["cleat", "exec", "-i", "web", "--", "sh", "-c", "echo up; read x; echo $x; exit $x"]) as client:
        assert client.stdin is not None
        assert line(client) == "up\n"
        if how == "killed":
            web.run(["systemctl", "kill", "--signal=KILL", "--kill-whom=main", "cleat.service"])
            web.wait_journal("CLEAT_EVENT=agent-started")
        else:
            web.run(["systemctl", "restart", "cleat.service"])
        client.stdin.write(b"9\n")
        client.stdin.flush()
        assert line(client) == "9\n"
        assert client.wait(10) == 9
    web.run(NOTHING_LEFT)
    web.cleat("restart", "web")


def test_an_end_without_an_agent_is_told_by_the_next_one(crun: Host) -> None:
    with crun.start(["cleat", "exec", "-i", "web", "--", "sh", "-c", "echo up; read x; exit 6"]) as client:
        assert client.stdin is not None
        assert line(client) == "up\n"
        crun.run(["systemctl", "stop", "cleat.service"])
        client.stdin.write(b"\n")
        client.stdin.flush()
        crun.run("while test ! -s /run/cleat/b/*/exec/*/exit/*; do :; done")
        assert client.poll() is None
        crun.run(["systemctl", "start", "cleat.service"])
        assert client.wait(10) == 6
    crun.run(NOTHING_LEFT)
    crun.cleat("restart", "web")


def test_the_exit_code_comes_back_over_a_restart_of_the_bus(crun: Host) -> None:
    with crun.start(["cleat", "exec", "-i", "web", "--", "sh", "-c", "echo up; read x; exit $x"]) as client:
        assert client.stdin is not None
        assert line(client) == "up\n"
        mark = crun.cursor()
        crun.run(["systemctl", "restart", "dbus.service"])
        crun.wait_journal("CLEAT_EVENT=bus-back", since=mark)
        client.stdin.write(b"5\n")
        client.stdin.flush()
        assert client.wait(20) == 5
    crun.run(NOTHING_LEFT)


def abandoned(host: Host) -> str:
    """The session whose client is gone, as the agent has noticed."""
    return str(host.wait_journal("CLEAT_EVENT=exec", where=lambda e: "client is gone" in e["MESSAGE"])["CLEAT_SESSION"])


def end_of(host: Host, session: str) -> int:
    return int(host.run([*BUS, "ExecWait", "s", session]).stdout.split()[1])


# Says what it was told to end by.
_NOTE = "trap 'echo {0} >>/tmp/told; exit 0' {0}; "
TOLD = _NOTE.format("HUP") + _NOTE.format("TERM") + "echo up; while :; do sleep 1; done"


@pytest.mark.parametrize(("terminal", "told"), [(False, "TERM\n"), (True, "HUP\n")])
def test_a_client_that_is_gone_ends_its_command(crun: Host, told: str, *, terminal: bool) -> None:
    words = ["cleat", "exec", *(["-t"] if terminal else []), "web", "--", "sh", "-c", TOLD]
    with crun.start(words) as client:
        assert line(client).strip() == "up"
        crun.run(["pkill", "-KILL", "-f", "cleat exec [^-]*.*web -- sh -c trap"])
        client.wait(10)
    assert end_of(crun, abandoned(crun)) == 0
    assert crun.cleat("exec", "web", "--", "cat", "/tmp/told").stdout == told
    crun.run(NOTHING_LEFT)


def test_what_ignores_the_hangup_is_killed_with_its_children(crun: Host) -> None:
    deaf = "trap '' TERM HUP; echo up; sleep 4245 & while :; do sleep 1; done"
    with crun.start(["cleat", "exec", "web", "--", "sh", "-c", deaf]) as client:
        assert line(client) == "up\n"
        crun.run(["pkill", "-KILL", "-f", "cleat exec web -- sh -c trap"])
        client.wait(10)
    assert end_of(crun, abandoned(crun)) == 137
    assert "4245" not in crun.cleat("top", "web").stdout
    crun.run(NOTHING_LEFT)


def test_a_client_that_went_while_there_was_no_agent(crun: Host) -> None:
    with crun.start(["cleat", "exec", "web", "--", "sh", "-c", TOLD]) as client:
        assert line(client) == "up\n"
        crun.run(["systemctl", "stop", "cleat.service"])
        crun.run(["pkill", "-KILL", "-f", "cleat exec web -- sh -c trap"])
        client.wait(10)
    crun.run(["systemctl", "start", "cleat.service"])
    assert end_of(crun, abandoned(crun)) == 0
    assert crun.cleat("exec", "web", "--", "cat", "/tmp/told").stdout == "TERM\n"
    crun.cleat("restart", "web")


def test_a_detached_command_needs_no_client(crun: Host) -> None:
    crun.cleat("exec", "-d", "web", "--", "sh", "-c", "while test ! -e /tmp/go; do sleep 0.1; done; exit 4")
    for _ in range(2):
        crun.run(["systemctl", "restart", "cleat.service"])
    crun.cleat("exec", "web", "--", "touch", "/tmp/go")
    crun.wait_journal("CLEAT_EVENT=exec", "EXIT_CODE=4")
    crun.cleat("restart", "web")


def test_sessions_end_with_their_container(web: Host) -> None:
    create(web, command=["true"])
    with web.start(["cleat", "exec", "web", "--", "sh", "-c", "echo up; sleep 1000"]) as client:
        assert line(client) == "up\n"
        web.cleat("stop", "web")
        assert client.wait(10) == 137
    assert web.run(["systemctl", "is-active", "cleat-web.scope"], check=False).stdout.strip() == "inactive"


def test_a_lost_conmon_takes_its_command_along(web: Host) -> None:
    with web.start(["cleat", "exec", "web", "--", "sh", "-c", "echo up; sleep 4242"]) as client:
        assert line(client) == "up\n"
        web.run("kill -9 $(cat /run/cleat/b/*/exec/*/conmon.pid)")
        assert client.wait(10) == 125
    assert "4242" not in web.cleat("top", "web").stdout
    web.run(NOTHING_LEFT)


def test_a_command_needs_a_running_container(crun: Host) -> None:
    crun.cleat("pause", "web")
    assert "paused" in crun.cleat("exec", "web", "--", "true", check=False).stderr
    crun.cleat("resume", "web")
    crun.cleat("stop", "web")
    assert "inactive" in crun.cleat("exec", "web", "--", "true", check=False).stderr


def test_others_cannot_touch_a_session(crun: Host) -> None:
    crun.write(
        "/etc/polkit-1/rules.d/10-exec.rules",
        'polkit.addRule(function(action, subject) { if (subject.user == "www-data") return "yes"; });',
    )
    crun.run(["systemctl", "restart", "polkit.service"])
    session = create(crun, command=["true"])
    as_other = ["runuser", "-u", "www-data", "--", *BUS]
    refused = crun.run([*as_other, "ExecKill", "si", session, "9"], check=False)
    crun.run(["rm", "/etc/polkit-1/rules.d/10-exec.rules"])
    crun.run(["systemctl", "restart", "polkit.service"])
    assert "another user" in refused.stderr
    crun.run([*BUS, "ExecKill", "si", session, "9"])


def test_a_health_check_is_ended_with_its_children(clean: Host) -> None:
    check = "[ -e /tmp/slow ] || exit 0; (sleep 4243 &); sleep 4244"
    more = f"""
[health]
command = ["/bin/sh", "-c", {json.dumps(check)}]
interval_sec = "200ms"
timeout_sec = "1s"
retries = 1
"""
    start(clean, "web", more=more)
    clean.wait_event("web", "healthy")
    clean.cleat("exec", "web", "--", "sh", "-c", "echo >/tmp/slow")
    clean.wait_event("web", "unhealthy")
    clean.cleat("exec", "web", "--", "rm", "/tmp/slow")
    clean.wait_journal("CLEAT_CONTAINER=web", "CLEAT_EVENT=healthy", where=lambda e: e is not None)
    clean.cleat("stop", "web")
    # Nothing but the two by hand was told.
    assert len(clean.journal("CLEAT_EVENT=exec")) == 2
