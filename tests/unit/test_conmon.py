# SPDX-License-Identifier: Apache-2.0
"""conmon's command line, environment and messages."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.conmon import command
from agent.conmon.command import Command, CreateOptions, LogOptions
from agent.conmon.monitor import SyncMessage, parse_message, read_exit_file, was_oom_killed
from agent.errors import ConmonFailed

ID = "a" * 64


def made(**keys: object) -> Command:
    base = {
        "conmon": "/usr/bin/conmon",
        "runtime": "/usr/bin/crun",
        "container_id": ID,
        "session": ID,
        "name": "web",
        "bundle": f"/run/cleat/b/{ID}",
    }
    return Command(**(base | keys))  # type: ignore[arg-type]


def test_create_arguments_in_full() -> None:
    argv = command.create_arguments(made(runtime_args=("--root", "/r"), preserve_fds=2), CreateOptions())
    text = " ".join(argv)
    assert argv[0] == "/usr/bin/conmon"
    for part in (
        f"-c {ID} -u {ID} -n web -r /usr/bin/crun -b /run/cleat/b/{ID}",
        f"-p /run/cleat/b/{ID}/pidfile --conmon-pidfile /run/cleat/b/{ID}/conmon.pid",
        f"--exit-dir /run/cleat/b/{ID}/exit --persist-dir /run/cleat/b/{ID}/persist --full-attach",
        "-l journald",
        "--runtime-arg=--root --runtime-arg=/r --runtime-arg=--log-format=json",
        "--runtime-opt=--preserve-fds --runtime-opt=2",
    ):
        assert part in text
    assert "-s" not in argv
    assert "-t" not in argv


def test_terminal_and_stdin_never_both() -> None:
    argv = command.create_arguments(made(terminal=True, stdin=True), CreateOptions())
    assert "-t" in argv
    assert "-i" not in argv
    assert "-i" in command.create_arguments(made(stdin=True), CreateOptions())


def test_exit_command_keeps_arguments_that_look_like_options() -> None:
    argv = command.create_arguments(made(), CreateOptions(exit_command=("/bin/x", "-v", "y")))
    assert argv[-4:] == ["--exit-command", "/bin/x", "--exit-command-arg=-v", "--exit-command-arg=y"]


def test_restore() -> None:
    argv = command.create_arguments(made(), CreateOptions(restore="/c", restore_opts=("--tcp-established",)))
    assert argv[-3:] == ["--restore", "/c", "--runtime-opt=--tcp-established"]


@pytest.mark.parametrize(
    ("log", "expected", "absent"),
    [
        (LogOptions(tag="t", labels={"A": "b"}), "-l journald --log-tag t --log-label A=b", "--log-size-max"),
        (LogOptions(driver="k8s-file", path="/l", size_max=5, tag="t"), "-l k8s-file:/l --log-size-max 5", "--log-tag"),
        (LogOptions(driver="none"), "-l none", "--log-tag"),
    ],
)
def test_log_options(log: LogOptions, expected: str, absent: str) -> None:
    text = " ".join(command.create_arguments(made(log=log), CreateOptions()))
    assert expected in text
    assert absent not in text


def test_exec_arguments() -> None:
    argv = command.exec_arguments(made(), "/p.json")
    assert argv[-4:] == ["-e", "--exec-attach", "--exec-process-spec", "/p.json"]


def test_environment_hides_what_the_runtime_must_not_see() -> None:
    base = {"PATH": "/bin", "NOTIFY_SOCKET": "/n", "LISTEN_FDS": "2", "LISTEN_PID": "1"}
    env = command.environment(base, preserved=2, attach=True)
    assert env == {"PATH": "/bin", "_OCI_SYNCPIPE": "5", "_OCI_STARTPIPE": "6", "_OCI_ATTACHPIPE": "7"}


def test_messages() -> None:
    assert parse_message(b'{"data": 42}\n') == SyncMessage(42)
    assert parse_message(b'{"data": -1, "message": "no such file"}\n') == SyncMessage(-1, "no such file")
    assert parse_message(b'{"data": -1, "message": "caf\xe9\x01"}\n\0').data == -1


@given(st.binary(max_size=200))
def test_no_message_is_more_than_refused(data: bytes) -> None:
    with suppress(ConmonFailed):
        parse_message(data)


def test_exit_file(tmp_path: Path) -> None:
    assert read_exit_file(str(tmp_path), ID) is None
    (tmp_path / ID).write_text("137")
    found = read_exit_file(str(tmp_path), ID)
    assert found is not None
    assert found.code == 137
    assert not was_oom_killed(str(tmp_path))
    (tmp_path / "oom").touch()
    assert was_oom_killed(str(tmp_path))
