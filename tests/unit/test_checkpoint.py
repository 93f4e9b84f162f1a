# SPDX-License-Identifier: Apache-2.0
"""Checkpoint and restore: their options as they come over the bus, and criu's reason out of its log."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.container.checkpoint import parse_checkpoint, parse_restore
from agent.container.restore import criu_reason
from agent.errors import InvalidArgument

# As criu 4.1 wrote it when an image file was missing.
LOG = """\
(00.000000) Version: 4.1.1 (gitid 0)
(00.031202) mnt: Reading mountpoint images
(00.044444) Error (criu/image.c:488): Unable to open core-1.img: No such file or directory
(00.044460) Error (criu/cr-restore.c:2330): Restoring FAILED.
"""


def test_options_are_read() -> None:
    asked = parse_checkpoint('{"leave_running": true, "export": "/var/tmp/web.tar"}')
    assert asked.leave_running
    assert asked.export == "/var/tmp/web.tar"
    assert not asked.keep
    assert parse_restore('{"import": "/web.tar", "keep": true}').archive == "/web.tar"
    assert parse_restore("{}").archive == ""


@pytest.mark.parametrize("text", ["", "[]", '{"exprt": "/x"}', '{"export": "x.tar"}', '{"leave_running": 1}'])
def test_bad_checkpoint_options_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_checkpoint(text)


@pytest.mark.parametrize("text", ["", "{", '{"import": "x.tar"}', '{"archive": "/x"}', '{"import": "/x\\u0000"}'])
def test_bad_restore_options_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_restore(text)


def test_the_first_error_of_criu_is_the_reason(tmp_path: Path) -> None:
    log = tmp_path / "restore.log"
    log.write_text(LOG, encoding="utf-8")
    assert criu_reason(log) == "Unable to open core-1.img: No such file or directory"


def test_a_missing_tool_is_not_the_reason_but_what_came_of_it(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    tools = """\
Error (criu/util.c:641): execvp("iptables-restore", ...) failed: No such file or directory
(00.165939) Error (criu/util.c:656): exited, status=1
"""
    failure = "(00.172898) Error (criu/net.c:3282): net: Locking network failed\n"
    log.write_text(tools + failure + tools, encoding="utf-8")
    assert criu_reason(log) == "net: Locking network failed"
    log.write_text(tools, encoding="utf-8")
    assert criu_reason(log) == ""


def test_without_a_log_or_an_error_there_is_no_reason(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    assert criu_reason(log) == ""
    log.write_text("(00.000000) Version: 4.1.1\n", encoding="utf-8")
    assert criu_reason(log) == ""
