# SPDX-License-Identifier: Apache-2.0
"""Tables, times and what is made of characters that drive terminals."""

from __future__ import annotations

import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cli import render
from agent.errors import NoSuchContainer


@given(st.text())
def test_nothing_that_drives_a_terminal_gets_through(text: str) -> None:
    shown = render.printable(text)
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("Grüße 日本 🚢", "Grüße 日本 🚢"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\tc\r", "a\\x0ab\\x09c\\x0d"),
        ("\x9b31m\u202egnp", "\\x9b31m\\u202egnp"),
        (b"\xff".decode(errors="surrogateescape"), "\\xff"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert render.printable(text) == shown


def test_kept_characters_are_left_alone() -> None:
    assert render.printable("a\tb\n\x07", keep="\t\n") == "a\tb\n\\x07"


def test_a_table_is_aligned_by_columns_on_the_screen() -> None:
    rows = render.table(("NAME", "PID", "STATUS"), [("日本", "7", "x\ny"), ("web", "1234", "")], right=("PID",))
    assert ["  ".join(row) for row in rows] == [
        "NAME   PID  STATUS",
        "日本     7  x\\x0ay",
        "web   1234  ",
    ]


@pytest.mark.parametrize(
    ("text", "columns", "shown"), [("abcdef", 6, "abcdef"), ("abcdefg", 6, "abcde…"), ("日本語", 5, "日本…")]
)
def test_cut(text: str, columns: int, shown: str) -> None:
    assert render.cut(text, columns) == shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (-1, "0s"), (0.4, "0s"), (59, "59s"), (61, "1min 1s"), (3600, "1h"), (3601, "1h"), (90061, "1d 1h")],
)
def test_spans(seconds: float, text: str) -> None:
    assert render.span(seconds) == text


def test_sizes() -> None:
    assert [render.size(n) for n in (0, 1023, 1024, 1536, 5 << 30)] == ["0B", "1023B", "1.0K", "1.5K", "5.0G"]


def test_times_of_log_lines_have_their_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert render.stamp(0.25) == "1970-01-01T05:30:00.250000+05:30"
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.dictionaries(st.text(), st.text()))
def test_pretty_json_is_the_same_json_and_safe(value: dict[str, str]) -> None:
    text = render.pretty(value)
    assert json.loads(text) == value
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)


def test_no_colour_into_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert render.paint("x", render.RED) == "x"


def test_an_error_is_one_line_on_stderr_and_gives_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    error = NoSuchContainer("no such container", container="w\x1beb", hint="see cleat status")
    assert render.report(error) == 4
    assert capsys.readouterr() == ("", "cleat: w\\x1beb: no such container (see cleat status)\n")
