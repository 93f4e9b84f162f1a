# SPDX-License-Identifier: Apache-2.0
"""Programs run from a read-only mount."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.spawn import child, unwritable
from agent.spawn.request import Request, carry_out

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "program"
    shutil.copy("/usr/bin/readlink", path)
    yield path
    unwritable.forget(str(path))


def output(argv: tuple[str, ...], unwritable: str) -> str:
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    # The program's fd has to make way for the fds of the child.
    null = child.null_fd()
    fds = (null, write_end, null, *[null] * 100)
    request = Request(argv=argv, env=child.base_environment(), fds=tuple(range(len(fds))), unwritable=unwritable)
    os.waitpid(carry_out(request, fds), 0)
    os.close(write_end)
    with open(read_end) as file:
        return file.read()


@needs_root
def test_nobody_can_write_to_it(program: Path) -> None:
    fd = unwritable.opened(str(program))
    assert os.statvfs(f"/proc/self/fd/{fd}").f_flag & os.ST_RDONLY
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
    assert not os.get_inheritable(fd)


@needs_root
def test_it_is_opened_once_and_again_when_it_was_replaced(program: Path) -> None:
    first = unwritable.opened(str(program))
    assert unwritable.opened(str(program)) == first
    other = program.with_name("new")
    shutil.copy("/usr/bin/true", other)
    other.replace(program)
    second = unwritable.opened(str(program))
    assert os.stat(second).st_ino == os.stat(program).st_ino


def test_it_is_run_as_ever(program: Path) -> None:
    # What is on a mount of its own has no path below the root.
    path = "/" if os.geteuid() == 0 else str(program)
    assert output((str(program), "/proc/self/exe"), str(program)) == f"{path}\n"


def test_a_script_is_run_by_its_path(program: Path) -> None:
    program.write_text("#!/bin/sh\necho $0")
    assert unwritable.opened(str(program)) == -1
    assert output((str(program),), str(program)) == f"{program}\n"


def test_one_that_is_not_there_is_left_to_who_runs_it(tmp_path: Path) -> None:
    assert unwritable.opened(str(tmp_path / "none")) == -1
