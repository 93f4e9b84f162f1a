# SPDX-License-Identifier: Apache-2.0
"""/etc/hosts and /etc/resolv.conf of containers that share a network."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest

from agent.container import mounts
from agent.definition.model import Container, Network


def container(**network: object) -> Container:
    return Container(name="two", network=Network(mode="container:one", **network))  # type: ignore[arg-type]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    one, two = tmp_path / "1", tmp_path / "2"
    one.mkdir()
    two.mkdir()
    (one / "hosts").write_text("127.0.0.1 localhost")
    (one / "resolv.conf").write_text("nameserver 10.0.0.1\n")
    return one, two


def small_files(wanted: Container, one: Path, two: Path) -> list[str]:
    mounts.take_small_files(wanted, one, two)
    found = mounts.small_files(wanted, "two", two, (os.geteuid(), os.getegid()))
    return [str(mount["destination"]) for mount in found]


def test_files_are_those_of_the_other(folders: tuple[Path, Path]) -> None:
    one, two = folders
    assert small_files(container(), one, two) == ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"]
    assert (one / "hosts").samefile(two / "hosts")
    assert (one / "hosts").read_text() == "127.0.0.1 localhost\n127.0.1.1 two\n"
    assert (two / "resolv.conf").read_text() == "nameserver 10.0.0.1\n"
    for name in ("hosts", "hostname", "resolv.conf"):
        (two / name).unlink()
    small_files(container(), one, two)
    assert (one / "hosts").read_text().count("two") == 1


def test_what_is_the_definitions_stays(folders: tuple[Path, Path]) -> None:
    one, two = folders
    small_files(container(hosts={"db": "10.0.0.5"}, dns=("10.0.0.2",)), one, two)
    assert (one / "hosts").read_text() == "127.0.0.1 localhost"
    assert "10.0.0.5 db\n" in (two / "hosts").read_text()
    assert (two / "resolv.conf").read_text() == "nameserver 10.0.0.2\n"


def test_another_that_has_none(tmp_path: Path) -> None:
    assert small_files(container(), tmp_path / "gone", tmp_path) == ["/etc/hosts", "/etc/hostname"]


def test_a_file_grown_huge_is_left_alone(folders: tuple[Path, Path]) -> None:
    one, two = folders
    with (one / "hosts").open("r+b") as file:
        file.truncate(1 << 30)
    small_files(container(), one, two)
    assert (one / "hosts").stat().st_size == 1 << 30


def test_a_leased_file_is_not_waited_for(folders: tuple[Path, Path]) -> None:
    one, two = folders
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    held = os.open(one / "hosts", os.O_RDWR)
    try:
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        assert "/etc/hosts" in small_files(container(), one, two)
    finally:
        os.close(held)
        signal.signal(signal.SIGIO, before)
    assert (one / "hosts").read_text() == "127.0.0.1 localhost"
