# SPDX-License-Identifier: Apache-2.0
"""Exec requests as they come over the bus, and what a command's folder says when it could not be executed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.conmon.command import Command, LogOptions, environment, exec_arguments
from agent.container.command import CommandFolder, ExecRequest, own_process, parse_request
from agent.errors import CommandNotFound, ConmonFailed, InvalidArgument, InvalidState


def request(**options: object) -> ExecRequest:
    return parse_request(json.dumps(options))


def test_a_request_is_read() -> None:
    found = request(command=["id", "-u"], user="www-data", terminal=True, width=80, height=24, environment={"A": "b"})
    assert found.command == ("id", "-u")
    assert found.options().width == 80
    assert found.options().environment == {"A": "b"}
    assert not found.detach


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "truncated"),
        ("[]", "Expected `object`"),
        ("{}", "command"),
        ('{"command": []}', "length >= 1"),
        ('{"command": [""]}', "empty"),
        ('{"command": "id"}', "array"),
        ('{"command": ["id"], "usr": "root"}', "usr"),
        ('{"command": ["id"], "width": -1}', ">= 0"),
        ('{"command": ["id"], "height": 1001}', "<= 1000"),
        ('{"command": ["id"], "working_directory": "srv"}', "absolute"),
        ('{"command": ["id\\u0000"]}', "NUL"),
        ('{"command": ["id"], "environment": {"A": 1}}', "environment"),
    ],
)
def test_a_bad_request_says_why(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        parse_request(text)


def folder(path: Path, log: str = "") -> CommandFolder:
    if log:
        (path / "oci-log").write_text(log, encoding="utf-8")
    return CommandFolder(path)


def test_the_runtimes_log_wins_over_conmons_message(tmp_path: Path) -> None:
    log = '{"msg":"executable file `x` not found in $PATH: No such file or directory","level":"error","time":""}\n'
    error = folder(tmp_path, log).failure("something else", "web")
    assert isinstance(error, CommandNotFound)
    assert "not found in $PATH" in error.why
    assert error.container == "web"


def test_conmons_message_is_taken_without_a_log(tmp_path: Path) -> None:
    error = folder(tmp_path).failure('exec: "x": executable file not found in $PATH', "web")
    assert isinstance(error, CommandNotFound)


def test_silence_is_conmons_failure(tmp_path: Path) -> None:
    assert isinstance(folder(tmp_path).failure("", "web"), ConmonFailed)


def test_the_process_of_the_running_container_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"process": {"args": ["sh"]}, "root": {}}', encoding="utf-8")
    assert own_process(tmp_path, "web") == {"args": ["sh"]}


@pytest.mark.parametrize("text", ["", "{}", "[]", "nonsense", '{"process": 1}'])
def test_a_damaged_spec_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidState, match="spec"):
        own_process(tmp_path, "web")
    with pytest.raises(InvalidState):
        own_process(tmp_path / "none", "web")


def test_conmon_waits_twice_only_where_clients_attach() -> None:
    call = Command(
        conmon="/usr/bin/conmon",
        runtime="/usr/bin/crun",
        container_id="c" * 64,
        session="s" * 64,
        name="web",
        bundle="/run/cleat/b/c/exec/s",
        log=LogOptions(driver="none"),
        runtime_opts=("--cgroup=exec-1",),
        stdin=True,
    )
    attached = exec_arguments(call, "/p.json")
    assert attached[-4:] == ["-e", "--exec-attach", "--exec-process-spec", "/p.json"]
    assert "--exec-attach" not in exec_arguments(call, "/p.json", attach=False)
    assert "--runtime-opt=--cgroup=exec-1" in attached
    assert "-i" in attached
    assert "journald" not in attached
    assert environment({}, preserved=0, attach=True)["_OCI_ATTACHPIPE"] == "5"
