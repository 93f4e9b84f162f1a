# SPDX-License-Identifier: Apache-2.0
"""Entries as they reach the journal's socket, and the catalog that explains them."""

from __future__ import annotations

import logging
import re
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import DefinitionRejected, RuntimeFailed
from agent.systemd import journal
from agent.systemd.journal import Event, Journal, LogHandler, Priority, encode, entry
from agent.systemd.text import clean, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

FIELDS = {"CLEAT_CONTAINER", "CLEAT_UNIT", "CLEAT_FILE", "CLEAT_KEY"} | {
    *("CONTAINER_ID_FULL", "EXIT_CODE", "REASON", "HINT")
}
CATALOG = Path(__file__).parents[2] / "config/catalog/cleat.catalog"


def decode(data: bytes) -> list[tuple[str, bytes]]:
    """The native protocol, read as journald does."""
    fields: list[tuple[str, bytes]] = []
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[8 + size + 1 :]
        fields.append((name.decode(), value))
        data = rest
    return fields


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "journal"))
        sock.settimeout(5)
        yield sock


def received(journald: socket.socket) -> dict[str, str]:
    return {name: value.decode() for name, value in decode(journald.recv(1 << 16))}


def test_fields_of_an_event(journald: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Journal(journald.getsockname())
    monkeypatch.setattr(journal, "_journal", target)
    journal.send(
        Event.EXITED,
        "web ended with 3",
        container="web",
        container_id="ab" * 32,
        unit="cleat-web.scope",
        exit_code=3,
        cleat_image="nginx",
    )
    target.close()
    fields = received(journald)
    assert {name: value for name, value in fields.items() if "UNIT" not in name} == {
        "MESSAGE": "web ended with 3",
        "MESSAGE_ID": Event.EXITED.message_id,
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "cleat",
        "CLEAT_EVENT": "exited",
        "CLEAT_CONTAINER": "web",
        "CONTAINER_NAME": "web",
        "CONTAINER_ID_FULL": "ab" * 32,
        "EXIT_CODE": "3",
        "CLEAT_IMAGE": "nginx",
    }


def test_both_units_are_objects_of_an_entry() -> None:
    fields = entry(Event.STARTED, "", container="web", unit="cleat-web.scope")
    objects = [value for name, value in fields if name.startswith("OBJECT_SYSTEMD_")]
    assert objects == ["cleat@web.service", "cleat-web.scope"]
    assert ("CLEAT_UNIT", "cleat-web.scope") in fields


def test_an_error_gives_code_reason_and_hint() -> None:
    error = RuntimeFailed("crun create failed", container="web", why="no such\nfile", hint="look")
    fields = dict(entry(Event.START_FAILED, "web cannot be started", error=error))
    assert fields["MESSAGE"] == "web cannot be started: crun create failed: no such; file (look)"
    assert fields["CLEAT_CONTAINER"] == "web"
    assert fields["CODE"] == "runtime-failed"
    assert fields["REASON"] == "no such\nfile"
    assert fields["HINT"] == "look"
    assert fields["PRIORITY"] == 3
    assert "CLEAT_FILE" not in fields


def test_an_error_alone_is_the_message() -> None:
    error = DefinitionRejected("is not a port", file="/etc/x.toml", key="socket[0].listen_stream")
    fields = dict(entry(Event.DEFINITION_REJECTED, "", container="x", error=error))
    assert fields["MESSAGE"] == "x: /etc/x.toml: socket[0].listen_stream: is not a port"
    assert fields["CLEAT_FILE"] == "/etc/x.toml"
    assert fields["CLEAT_KEY"] == "socket[0].listen_stream"


def test_given_fields_come_before_those_of_the_error() -> None:
    fields = entry(Event.EXITED, "x", error=RuntimeFailed("y"), code="exec-failed")
    assert [value for name, value in fields if name == "CODE"] == ["exec-failed"]


def test_fields_with_names_that_journald_refuses_are_left_out() -> None:
    odd: dict[str, Any] = {"_PID": "1", "1A": "1", "A-B": "1", "A" * 65: "1"}
    names = {name for name, _ in entry(Event.EXITED, "x", **odd)}
    assert names == {"MESSAGE", "MESSAGE_ID", "PRIORITY", "SYSLOG_IDENTIFIER", "CLEAT_EVENT"}


def test_priority_can_be_given() -> None:
    assert dict(entry(Event.OOM, "x"))["PRIORITY"] == Priority.ERROR
    assert dict(entry(Event.OOM, "x", priority=Priority.NOTICE))["PRIORITY"] == 5


_TEXT = st.text(max_size=200) | st.text(st.sampled_from("a\n\r\x1b\0=\x9b‮ \t\udc80"), max_size=60)


@given(_TEXT, _TEXT)
def test_containers_cannot_forge_fields_or_lines(message: str, value: str) -> None:
    fields = entry(Event.UNHEALTHY, message, container="web", output=value)
    decoded = decode(encode(fields))
    assert [name for name, _ in decoded] == [name for name, _ in fields]
    assert decoded[0][1].decode().isprintable()
    assert dict(decoded)["OUTPUT"].decode().translate({10: None, 9: None}).isprintable()


@given(_TEXT, st.integers(1, 50))
def test_clean_text_is_one_printable_line_of_limited_length(text: str, limit: int) -> None:
    cleaned = clean(text, limit)
    assert cleaned.isprintable()
    assert len(cleaned) <= limit
    assert one_line(text).isprintable()


def test_long_text_is_cut() -> None:
    assert clean("x" * 5000) == "x" * 2047 + "…"
    data = encode(entry(Event.UNHEALTHY, "x" * 10**6, output="y" * 10**6, blob=b"z" * 10**6))
    assert len(data) < 12000


def test_kept_characters_stay() -> None:
    assert clean("a\tb\nc\x1b", keep="\n\t") == "a\tb\nc\\x1b"


def test_what_cannot_be_delivered_is_counted_and_told(tmp_path: Path) -> None:
    path = str(tmp_path / "late")
    target = Journal(path)
    fields = entry(Event.HEALTHY, "x")
    assert not target.write(fields)
    assert not target.write(fields)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(path)
        journald.settimeout(5)
        assert target.write(fields)
        assert received(journald)["CLEAT_EVENT"] == "healthy"
        told = received(journald)
    assert (told["CLEAT_EVENT"], told["DROPPED"]) == ("journal-dropped", "2")
    assert target.dropped == 0
    target.close()


def test_a_stuck_journald_does_not_stop_the_agent(journald: socket.socket) -> None:
    target = Journal(journald.getsockname())
    fields = entry(Event.HEALTHY, "x")
    started = time.monotonic()
    for _ in range(5000):
        target.write(fields)
    assert target.dropped > 0
    # One moment of patience at the first lost entry, none for those after it.
    assert time.monotonic() - started < 5
    target.close()


def test_a_restarted_journald_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    target = Journal(str(path))
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
            journald.bind(str(path))
            assert target.write(entry(Event.HEALTHY, "x"))
            assert journald.recv(9999)
        path.unlink()
    target.close()


def test_debug_log(journald: socket.socket) -> None:
    target = Journal(journald.getsockname())
    logger = logging.getLogger("agent.test")
    handler = LogHandler(target)
    logger.addHandler(handler)
    logger.warning("disk %s", "full\x1b[31m")
    fields = received(journald)
    assert (fields["MESSAGE"], fields["PRIORITY"], fields["LOGGER"]) == ("disk full\\x1b[31m", "4", "agent.test")
    assert fields["CODE_FUNC"] == "test_debug_log"
    assert "CLEAT_EVENT" not in fields
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("failed")
    fields = received(journald)
    assert fields["MESSAGE"] == "failed: ValueError: why"
    assert "Traceback" in fields["EXCEPTION"]
    logger.removeHandler(handler)
    target.close()


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2), (5, 7)],
)
def test_levels(level: int, priority: int) -> None:
    assert journal.priority_of(level) == priority


def test_stderr_is_the_journal_only_when_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "err").open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        found = (tmp_path / "err").stat()
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        assert journal.stderr_is_journal()
        monkeypatch.setenv("JOURNAL_STREAM", "1:2")
        assert not journal.stderr_is_journal()


def test_ids_are_unique() -> None:
    assert len({event.message_id for event in Event}) == len(Event)
    assert all(re.fullmatch("[0-9a-f]{32}", event.message_id) for event in Event)


def catalog() -> dict[str, list[str]]:
    """Lines of each catalog entry by id."""
    entries: dict[str, list[str]] = {}
    current: list[str] = []
    for line in CATALOG.read_text().splitlines():
        if line.startswith("-- "):
            current = entries[line.removeprefix("-- ")] = []
        else:
            current.append(line)
    return entries


def test_the_catalog_explains_every_event() -> None:
    assert set(catalog()) == {event.message_id for event in Event}


@pytest.mark.parametrize("event", list(Event))
def test_catalog_entries_are_complete(event: Event) -> None:
    lines = catalog()[event.message_id]
    end = lines.index("")
    header = dict(line.split(": ", 1) for line in lines[:end])
    assert header.keys() == {"Subject", "Defined-By", "Support"}
    assert header["Defined-By"] == "cleat"
    assert any(lines[end:])
    names = set(re.findall(r"@([^@\s]+)@", "\n".join(lines)))
    assert names <= FIELDS
