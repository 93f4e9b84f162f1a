# SPDX-License-Identifier: Apache-2.0
"""Detach keys, raw mode on a real pseudo-terminal, long socket paths."""

from __future__ import annotations

import contextlib
import os
import pty
import socket
import termios
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cli import pump, terminal
from agent.errors import InvalidArgument, InvalidState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "keys"),
    [("ctrl-p,ctrl-q", b"\x10\x11"), ("", b""), ("a", b"a"), ("ctrl-@,CTRL-[,x", b"\0\x1bx"), ("ctrl-_", b"\x1f")],
)
def test_keys(text: str, keys: bytes) -> None:
    assert terminal.parse_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-pp", "ab", "ctrl-1", ",", "é", "a,"])
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(InvalidArgument, match="detach-keys"):
        terminal.parse_keys(text)


@given(st.binary(max_size=40), st.lists(st.integers(1, 5)))
def test_keys_are_found_however_they_come(typed: bytes, sizes: list[int]) -> None:
    typed = bytes(b"\x10\x11ab"[value % 4] for value in typed)
    matcher = terminal.KeyMatcher(b"\x10\x11")
    passed, found, rest = b"", False, typed
    for size in [*sizes, *[1] * len(typed)]:
        if rest and not found:
            part, found = matcher.feed(rest[:size])
            passed, rest = passed + part, rest[size:]
    before, keys, _ = typed.partition(b"\x10\x11")
    assert found == bool(keys)
    assert passed == (before if found else before.removesuffix(b"\x10") if before.endswith(b"\x10") else before)


def test_without_keys_nothing_is_held_back() -> None:
    assert terminal.KeyMatcher(b"").feed(b"\x10\x11") == (b"\x10\x11", False)


@pytest.fixture(name="tty")
def _tty() -> Iterator[int]:
    leader, follower = pty.openpty()
    yield follower
    os.close(leader)
    os.close(follower)


def test_raw_mode_ends_whatever_happens(tty: int) -> None:
    before = termios.tcgetattr(tty)
    with contextlib.suppress(RuntimeError), terminal.raw(tty, wanted=True):
        assert not termios.tcgetattr(tty)[3] & termios.ECHO
        raise RuntimeError
    assert termios.tcgetattr(tty) == before


def test_raw_mode_is_only_for_terminals(tty: int) -> None:
    before = termios.tcgetattr(tty)
    with terminal.raw(tty, wanted=False):
        assert termios.tcgetattr(tty) == before
    reading, writing = os.pipe()
    with terminal.raw(reading, wanted=True):
        pass
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("length", [1, 200])
def test_a_socket_is_reached_however_long_its_path(tmp_path: Path, length: int) -> None:
    folder = tmp_path / ("x" * length)
    folder.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        link = os.open(folder, os.O_PATH)
        server.bind(f"/proc/self/fd/{link}/attach")
        os.close(link)
        server.listen(1)
        with pump.connect(str(folder / "attach")) as connection:
            assert connection.type == socket.SOCK_SEQPACKET
            assert not connection.getblocking()


def test_a_socket_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(InvalidState, match="cannot attach: No such file"):
        pump.connect(str(tmp_path / "attach"))
