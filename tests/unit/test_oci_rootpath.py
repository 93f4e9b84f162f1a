# SPDX-License-Identifier: Apache-2.0
"""Root file systems that try to lead out of themselves."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from agent.errors import InvalidArgument
from agent.oci.rootpath import open_in_root, opened_root, read_in_root

SECRET = "host"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text(SECRET)
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/file").write_text("inside")
    (root / "secret").write_text("inside")
    return root


@pytest.mark.parametrize("path", ["etc/file", "/etc/file", "//etc/./file", "../../etc/file", "etc/../etc/file"])
def test_paths_begin_at_the_root(root: Path, path: str) -> None:
    assert read_in_root(root, path, 100) == b"inside"


@pytest.mark.parametrize("target", ["/secret", "../secret", "../../secret", "../../../../../../secret"])
def test_symlinks_do_not_lead_out(root: Path, target: str) -> None:
    (root / "etc/link").symlink_to(target)
    assert read_in_root(root, "/etc/link", 100) == b"inside"


def test_a_folder_that_is_a_symlink_does_not_lead_out(root: Path, tmp_path: Path) -> None:
    (root / "out").symlink_to(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_in_root(root, "/out/secret", 100)


def test_magic_links_are_refused(root: Path) -> None:
    with opened_root("/") as fd, pytest.raises(OSError, match="symbolic links"):
        os.close(open_in_root(fd, "/proc/self/root/etc", os.O_PATH))


def test_a_loop_of_symlinks_ends(root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        read_in_root(root, "/a", 100)


def test_a_fifo_neither_blocks_nor_is_read(root: Path) -> None:
    os.mkfifo(root / "fifo")
    with pytest.raises(InvalidArgument, match="not a regular file"):
        read_in_root(root, "/fifo", 100)


def test_a_socket_and_a_folder_are_refused(root: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "s"))
        with pytest.raises(InvalidArgument, match="not a regular file"):
            read_in_root(root, "/s", 100)
    with pytest.raises(InvalidArgument, match="not a regular file"):
        read_in_root(root, "/etc", 100)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
def test_a_device_is_not_opened(root: Path) -> None:
    try:
        os.mknod(root / "zero", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("no device nodes can be made here")
    with pytest.raises(InvalidArgument, match="not a regular file"):
        read_in_root(root, "/zero", 100)


def test_the_limit_holds(root: Path) -> None:
    assert read_in_root(root, "/etc/file", 6) == b"inside"
    with pytest.raises(InvalidArgument, match="larger than 5 bytes"):
        read_in_root(root, "/etc/file", 5)


def test_what_is_not_there(root: Path) -> None:
    for path in ("/none", "/etc/file/below", "", "a\0b"):
        with pytest.raises(OSError):  # noqa: PT011 each has another errno
            read_in_root(root, path, 10)


def test_fds_are_close_on_exec_and_none_is_left(root: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with opened_root(root) as fd:
        handle = open_in_root(fd, "/etc/file", os.O_RDONLY)
        assert not os.get_inheritable(handle)
        assert not os.get_inheritable(fd)
        os.close(handle)
        assert read_in_root(fd, "/etc/file", 10) == b"inside"
    assert os.listdir("/proc/self/fd") == before
