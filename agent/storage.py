# SPDX-License-Identifier: Apache-2.0
"""Trees of files below the agent's folders: removed and copied by rm(1) and cp(1)."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from agent.errors import CleatError
from agent.spawn import tool
from agent.spawn.spawner import HERE, Spawner

_REMOVE_TIMEOUT = 120.0
_COPY_TIMEOUT = 600.0
_WORDS_MAX = 300
# linux/fs.h, for the architectures that count directions of ioctls in common; on others they are unknown to the kernel.
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS, _FS_TOPDIR_FL = 0x80086601, 0x40086602, 0x00020000
_FLAGS = struct.Struct("l")


async def remove_tree(*paths: Path, spawner: Spawner = HERE) -> None:
    """Remove folders with all that is in them, without following links or leaving their file system."""
    present = _present(paths)
    if not present:
        return
    argv = ["rm", "-rf", "--one-file-system", "--", *present]
    result = await tool.run(argv, timeout=_REMOVE_TIMEOUT, spawner=spawner)
    if result.returncode != 0:
        raise CleatError(f"cannot remove {present[0]}", why=result.text[-_WORDS_MAX:])


def _present(paths: Sequence[Path]) -> list[str]:
    return [os.fspath(path) for path in paths if os.path.lexists(path)]


async def copy_tree(source: Path, target: Path, spawner: Spawner) -> None:
    """Copy a folder with owners, modes, device nodes and extended attributes, sharing blocks where the disk can."""
    target.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    argv = ["cp", "--archive", "--reflink=auto", "--no-target-directory", "--", os.fspath(source), os.fspath(target)]
    result = await tool.run(argv, timeout=_COPY_TIMEOUT, spawner=spawner)
    if result.returncode != 0:
        raise CleatError(f"cannot copy {source}", why=result.text[-_WORDS_MAX:], hint=f"df {target.parent}")


def remove_small_tree(path: Path) -> None:
    """Remove a folder of ours that holds a handful of entries; for undo, where nothing may be awaited."""
    with suppress(OSError):
        shutil.rmtree(path)


def scatter(folder: Path) -> None:
    """Have ext4 put the folders in this one far from each other (chattr(1), T); other file systems have no need to.

    For folders that come and go: beside its siblings a new one would be searched a place for among all that were
    deleted in the last minutes, inode by inode.
    """
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            (flags,) = _FLAGS.unpack(fcntl.ioctl(fd, _FS_IOC_GETFLAGS, _FLAGS.pack(0)))
            if not flags & _FS_TOPDIR_FL:
                fcntl.ioctl(fd, _FS_IOC_SETFLAGS, _FLAGS.pack(flags | _FS_TOPDIR_FL))
        finally:
            os.close(fd)
