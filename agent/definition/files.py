# SPDX-License-Identifier: Apache-2.0
"""Files on disk that hold settings: read without blocking, trusted only when nobody else can write them."""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from agent.definition.values import shown

WORLD = stat.S_IWGRP | stat.S_IWOTH
_NULL = os.makedev(1, 3)


class Unusable(Exception):
    """A file or folder that cannot or must not be used: why, and what to do."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


class FileId(NamedTuple):
    """What changes when a file does: its content, its owner or its mode (ctime), or which file it is."""

    path: str
    mtime_ns: int
    size: int
    inode: int
    ctime_ns: int
    device: int


def file_id(path: str, found: os.stat_result) -> FileId:
    return FileId(path, found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns, found.st_dev)


def stat_id(path: str) -> FileId | None:
    """The id of a file now, None where there is none."""
    try:
        return file_id(path, os.stat(path))
    except OSError:
        return None


def is_mask(found: os.stat_result) -> bool:
    """Whether a symlink led to /dev/null."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == _NULL


def read(path: str, limit: int) -> tuple[bytes, os.stat_result]:
    """A regular file of at most `limit` bytes and what fstat(2) says of it. Raises Unusable.

    O_NONBLOCK: opening a fifo or a device that somebody put there must not hang the agent.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as e:
        raise unreadable(path, e) from e
    try:
        found = os.fstat(fd)
        check_regular(found, limit)
        content = _read_up_to(fd, limit)
    except OSError as e:
        raise unreadable(path, e) from e
    finally:
        os.close(fd)
    return content, found


def _read_up_to(fd: int, limit: int) -> bytes:
    content = b""
    while len(content) <= limit:
        chunk = os.read(fd, limit + 1 - len(content))
        if not chunk:
            return content
        content += chunk
    raise Unusable(f"has more than {limit} bytes", "it grew while it was read")


def check_regular(found: os.stat_result, limit: int) -> None:
    """Raises Unusable for what is no regular file, or too large."""
    if not stat.S_ISREG(found.st_mode):
        raise Unusable(f"is {_kind(found.st_mode)} and not a regular file", "remove it")
    if found.st_size > limit:
        raise Unusable(f"has {found.st_size} bytes", f"at most {limit} are read")


def _kind(mode: int) -> str:
    for matches, name in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a fifo"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if matches(mode):
            return name
    return "something else"


def unreadable(path: str, error: OSError) -> Unusable:
    """The reason for a failed open(2) or stat(2)."""
    if error.errno == errno.ENOENT and os.path.islink(path):
        return Unusable(
            f"is a symlink to {shown(os.readlink(path))}, which does not exist", "remove it, or its target is missing"
        )
    if error.errno == errno.ENXIO:
        return Unusable("is a socket or a fifo and not a regular file", "remove it")
    if error.errno == errno.ELOOP:
        return Unusable("is a symlink that leads back to itself", "remove it")
    return Unusable(f"cannot be read: {error.strerror}")


def check_owner(path: str, found: os.stat_result) -> None:
    """Only root, or the user whose agent this is, may be able to change it. Raises Unusable."""
    if found.st_uid not in {0, os.geteuid()}:
        raise Unusable(f"is owned by uid {found.st_uid}, who could change what runs as root", f"chown root {path}")
    if found.st_mode & WORLD:
        who = "everybody" if found.st_mode & stat.S_IWOTH else "its group"
        raise Unusable(f"can be written by {who} (mode {stat.S_IMODE(found.st_mode):04o})", f"chmod go-w {path}")
