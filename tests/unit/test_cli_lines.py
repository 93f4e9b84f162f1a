# SPDX-License-Identifier: Apache-2.0
"""Pieces of log lines put together, and the k8s-file format."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cli import crilog
from agent.cli.lines import Joiner, Line, json_of, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def out(text: str, *, partial: bool = False, stream: str = "stdout", id: str = "a", time: float = 0.0) -> Line:  # noqa: A002
    return Line(time, stream, text, id, partial)


def joined(*pieces: Line) -> list[tuple[str, str]]:
    joiner = Joiner()
    lines = [line for piece in pieces for line in joiner.add(piece)]
    return [(line.stream, line.text) for line in [*lines, *joiner.flush()]]


def test_pieces_become_one_line() -> None:
    assert joined(out("a", partial=True), out("b", partial=True), out("c"), out("d")) == [
        ("stdout", "abc"),
        ("stdout", "d"),
    ]


def test_streams_are_joined_apart() -> None:
    pieces = (out("a", partial=True), out("X", stream="stderr", partial=True), out("b"), out("Y", stream="stderr"))
    assert joined(*pieces) == [("stdout", "ab"), ("stderr", "XY")]


def test_a_last_line_without_newline_is_shown() -> None:
    assert joined(out("a"), out("prompt> ", partial=True)) == [("stdout", "a"), ("stdout", "prompt> ")]


def test_another_run_of_the_container_ends_open_lines() -> None:
    assert joined(out("end", partial=True), out("start", id="b")) == [("stdout", "end"), ("stdout", "start")]


def test_the_agents_entries_pass_between_pieces() -> None:
    pieces = (out("a", partial=True), out("ready", stream="agent"), out("b"))
    assert joined(*pieces) == [("agent", "ready"), ("stdout", "ab")]


def test_a_line_without_end_is_shown_in_parts() -> None:
    pieces = [out("x" * 8192, partial=True)] * 1100
    shown = joined(*pieces)
    assert len(shown) > 1
    assert sum(len(text) for _, text in shown) == 8192 * 1100


def test_the_time_is_that_of_the_first_piece() -> None:
    joiner = Joiner()
    list(joiner.add(out("a", partial=True, time=1.0)))
    assert [line.time for line in joiner.add(out("b", time=2.0))] == [1.0]


@given(st.lists(st.tuples(st.text(max_size=5), st.booleans(), st.sampled_from(["stdout", "stderr"])), max_size=20))
def test_no_text_is_lost(pieces: list[tuple[str, bool, str]]) -> None:
    shown = joined(*(out(text, partial=partial, stream=stream) for text, partial, stream in pieces))
    for stream in ("stdout", "stderr"):
        said = "".join(text for text, _, kind in pieces if kind == stream)
        assert "".join(text for kind, text in shown if kind == stream) == said


def test_text_into_a_pipe_is_raw() -> None:
    assert text_of(out("\x1b[31mred\r"), timestamps=False) == "\x1b[31mred\r"
    assert text_of(out("ready", stream="agent"), timestamps=False) == "cleat: ready"


def test_json_of_bytes_that_are_no_text() -> None:
    assert json_of(out("a\udcff", time=1.5)) == '{"time":1.5,"stream":"stdout","text":"a\ufffd","id":"a"}'


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (b"1970-01-01T00:00:01.500000001+00:00 stdout F hello world\n", Line(1.5, "stdout", "hello world")),
        (b"1970-01-01T01:00:00+01:00 stderr P part", Line(0.0, "stderr", "part", partial=True)),
        (b"1970-01-01T00:00:00Z stdout F \n", Line(0.0, "stdout", "")),
        (b"1970-01-01T00:00:00Z stdout F\n", Line(0.0, "stdout", "")),
        (b"1970-01-01T00:00:00Z stdout F \xff\n", Line(0.0, "stdout", "\udcff")),
    ],
)
def test_lines_of_the_k8s_file_format(raw: bytes, line: Line) -> None:
    assert crilog.parse(raw) == line


@given(st.binary(max_size=60))
def test_other_lines_are_passed_over(raw: bytes) -> None:
    assert crilog.parse(b"x" + raw) is None


def texts(path: Path, last: int | None) -> list[str]:
    joiner = Joiner()
    lines = [line for piece in crilog.read(str(path), last=last, follow=False) if piece for line in joiner.add(piece)]
    return [line.text for line in [*lines, *joiner.flush()]]


@pytest.mark.parametrize("length", [10, 100_000])
def test_the_last_lines_of_a_file_with_their_pieces(tmp_path: Path, length: int) -> None:
    path = tmp_path / "log"
    rows = []
    for number in range(5):
        rows += [f"2026-01-01T00:00:00Z stdout P {number}{'x' * length}", "2026-01-01T00:00:00Z stdout F |end F "]
    path.write_text("\n".join(rows) + "\n")
    whole = [f"{number}{'x' * length}|end F " for number in range(5)]
    assert texts(path, None) == whole
    for count in (0, 1, 3, 5, 9):
        assert texts(path, count) == (whole[-count:] if count else [])


def test_a_file_is_followed_over_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "log"

    def write(text: str) -> None:
        with path.open("a") as file:
            file.write(f"2026-01-01T00:00:00Z stdout F {text}\n")

    def next_text(lines: Iterator[Line | None]) -> str:
        return next(line.text for line in lines if line)

    write("old")
    write("one")
    lines = crilog.read(str(path), last=1, follow=True)
    assert next_text(lines) == "one"
    assert next(lines) is None
    write("two")
    assert next_text(lines) == "two"
    path.rename(tmp_path / "log.1")
    write("three")
    assert next_text(lines) == "three"
    assert isinstance(lines, Generator)
    lines.close()
