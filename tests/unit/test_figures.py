# SPDX-License-Identifier: Apache-2.0
"""Figures: io.stat summed, processes as rows, what a process says of itself made fit for a terminal."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.container.figures import command_line, io_totals, rows


def test_bytes_of_all_devices_are_added() -> None:
    text = "8:0 rbytes=10 wbytes=1 rios=1 wios=1 dbytes=0 dios=0\n253:1 rbytes=5 wbytes=2\n"
    assert io_totals(text) == {"read_bytes": 15, "write_bytes": 3}


@pytest.mark.parametrize("text", ["", "8:0", "8:0 \n\n", "8:0 rbytes=x wbytes", "nonsense"])
def test_odd_lines_are_passed_over(text: str) -> None:
    assert io_totals(text) == {}


def test_a_process_is_a_row() -> None:
    (row,) = rows([os.getpid()])
    assert row.pid == os.getpid()
    assert row.rss > 1 << 20
    assert row.time > 0
    assert row.cpu_percent >= 0
    assert row.command


def test_a_process_that_is_gone_is_none() -> None:
    assert rows([2**22 + 1]) == []


def test_a_process_without_arguments_shows_its_name() -> None:
    assert command_line([], "kthread") == "[kthread]"
    assert command_line([""], "sh") == "[sh]"


@given(st.lists(st.text(max_size=200), max_size=20), st.text(max_size=20))
def test_a_command_line_is_one_printable_line(argv: list[str], name: str) -> None:
    text = command_line(argv, name)
    assert text.isprintable()
    assert len(text) <= 512
