# SPDX-License-Identifier: Apache-2.0
"""Devices of the host: entries taken apart, nodes looked up."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import CleatError, InvalidArgument, Unsupported
from agent.oci import devices


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        ("/dev/fuse", ("/dev/fuse", "/dev/fuse", "rwm")),
        ("/dev/fuse:r", ("/dev/fuse", "/dev/fuse", "r")),
        ("/dev/sda:/dev/xvda", ("/dev/sda", "/dev/xvda", "rwm")),
        ("/dev/sda:/dev/xvda:mr", ("/dev/sda", "/dev/xvda", "mr")),
    ],
)
def test_entries(entry: str, parts: tuple[str, str, str]) -> None:
    assert devices.split(entry) == parts


@pytest.mark.parametrize("entry", ["", "fuse", "/dev/a:b", "/dev/a:/b:rwx", "/dev/a:/b:r:w", "/dev/a:rr", "/dev/a:"])
def test_bad_entries_are_refused(entry: str) -> None:
    with pytest.raises(InvalidArgument, match=r"security\.devices"):
        devices.split(entry)


def test_a_device_is_looked_up() -> None:
    (found,) = devices.resolve(["/dev/null:/dev/nothing:rw"])
    assert (found.path, found.type, found.major, found.minor, found.access) == ("/dev/nothing", "c", 1, 3, "rw")


def test_a_folder_means_its_devices(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("/dev/null")
    assert devices.resolve([str(tmp_path)]) == ()


def test_what_is_no_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "none"):
        with pytest.raises(InvalidArgument, match=r"web.*security\.devices"):
            devices.resolve([str(path)], container="web")
    with pytest.raises(Unsupported, match="CDI"):
        devices.resolve(["vendor.com/gpu=all"])


def test_the_hosts_devices_leave_out_what_each_container_has() -> None:
    paths = {device.path for device in devices.all_of_host()}
    assert "/dev/null" in paths
    assert not any(path.startswith(("/dev/pts", "/dev/shm", "/dev/console", "/dev/ptmx")) for path in paths)


@given(st.text("/dev:rwmx.= ", max_size=12))
def test_any_entry_is_split_or_refused(entry: str) -> None:
    try:
        host, target, access = devices.split(entry)
    except CleatError:
        return
    assert host.startswith("/")
    assert target.startswith("/")
    assert set(access) <= set("rwm")
