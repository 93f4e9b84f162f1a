# SPDX-License-Identifier: Apache-2.0
"""The nodes of listening sockets and fifos in the file system.

A node is made with mode 0600 and opened up afterwards by way of an fd on itself, so it is never more open
than asked for and nobody can put another file in its place. What lies at the path already is removed only
when it is a socket of ours that nobody listens on.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import pwd
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from agent.systemd import sockdiag
from agent.systemd.holders import holder_of
from agent.systemd.socket_wanted import hint_of

if TYPE_CHECKING:
    from agent.systemd.socket_wanted import Wanted


def clear_path(want: Wanted, owner: tuple[int, int]) -> None:
    """Make the folders; remove a socket that an earlier agent left. Raises DefinitionRejected for anything else."""
    _make_folders(want)
    try:
        found = os.lstat(want.path)
    except FileNotFoundError:
        return
    except OSError as e:
        raise want.rejected("", e.strerror or str(e)) from e
    if not stat.S_ISSOCK(found.st_mode):
        raise want.rejected("", f"{want.path} exists and is not a socket", "remove it, or choose another path")
    holders = _listeners_at(want, found)
    if holders is not None:
        holder = holder_of(holders)
        why = f"a process listens there already{': ' + holder if holder else ''}"
        raise want.rejected("", why, hint_of(errno.EADDRINUSE))
    if found.st_uid not in {os.geteuid(), owner[0]}:
        why = f"an old socket of user {found.st_uid} is in the way"
        raise want.rejected("", why, f"remove it if nobody needs it: rm {want.path}")
    Path(want.path).unlink()


def _listeners_at(want: Wanted, found: os.stat_result) -> list[int] | None:
    """The inodes of the sockets bound to a node, None when it is stale.

    The list of sockets ends at the network namespace, a node does not: what is not in the list is tried by
    connect(2), which only a node without a socket refuses.
    """
    with suppress(OSError):
        bound = sockdiag.unix_holders(b"", sockdiag.file_key(found))
        if bound:
            return [s.inode for s in bound]
    kind = want.kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_UNIX, kind) as probe:
        try:
            probe.connect(want.path)
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except OSError:
            return []
    return []


def _make_folders(want: Wanted) -> None:
    """The missing folders above the node, each with directory_mode whatever the umask is."""
    try:
        missing = [p for p in Path(want.path).parents if not p.exists()]
        for folder in reversed(missing):
            folder.mkdir(mode=0o700)
            folder.chmod(want.options.directory_mode)
    except OSError as e:
        raise want.rejected("directory_mode", f"{e.filename}: {e.strerror}") from e


def owner_of(want: Wanted) -> tuple[int, int]:
    """uid and gid of the node; the agent's own where the table says nothing (systemd.socket(5), SocketUser=)."""
    uid, gid = os.geteuid(), os.getegid()
    if want.options.socket_user:
        uid, gid = _user(want, gid)
    if want.options.socket_group:
        gid = _group(want)
    return uid, gid


def _user(want: Wanted, gid: int) -> tuple[int, int]:
    name = want.options.socket_user
    is_number = name.isascii() and name.isdigit()
    try:
        entry = pwd.getpwuid(int(name)) if is_number else pwd.getpwnam(name)
    except (KeyError, OverflowError) as e:
        if is_number and int(name) < 2**32 - 1:
            return int(name), gid
        raise want.rejected("socket_user", f"there is no user {name}") from e
    return entry.pw_uid, entry.pw_gid


def _group(want: Wanted) -> int:
    name = want.options.socket_group
    try:
        if name.isascii() and name.isdigit() and int(name) < 2**32 - 1:
            return int(name)
        return grp.getgrnam(name).gr_gid
    except KeyError as e:
        raise want.rejected("socket_group", f"there is no group {name}") from e


def open_up(want: Wanted, owner: tuple[int, int]) -> None:
    """Give the new node its owner and mode, by way of an fd: the path may lead elsewhere by now."""
    node = -1
    try:
        node = os.open(want.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        found = os.fstat(node)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
            raise want.rejected("", f"{want.path} was replaced while the socket was made", "use a safer folder")
        os.chown(f"/proc/self/fd/{node}", *owner)
        Path(f"/proc/self/fd/{node}").chmod(want.options.socket_mode)
    except OSError as e:
        raise want.rejected("socket_mode", e.strerror or str(e)) from e
    finally:
        if node >= 0:
            os.close(node)


def make_fifo(want: Wanted) -> int:
    uid, gid = owner_of(want)
    _make_folders(want)
    fd = -1
    try:
        with suppress(FileExistsError):
            os.mkfifo(want.path, 0o600)
        # For reading and writing: it opens at once, and readers see no end when a writer goes (fifo(7)).
        fd = os.open(want.path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        found = os.fstat(fd)
        if not stat.S_ISFIFO(found.st_mode) or found.st_uid not in {os.geteuid(), uid}:
            raise want.rejected(
                "", f"{want.path} exists and is not a fifo of ours", "remove it, or choose another path"
            )
        os.fchown(fd, uid, gid)
        os.fchmod(fd, want.options.socket_mode)
        set_pipe_size(fd, want)
        os.set_blocking(fd, True)
    except BaseException as e:
        if fd >= 0:
            os.close(fd)
        if isinstance(e, OSError):
            raise want.rejected("", e.strerror or str(e)) from e
        raise
    return fd


def set_pipe_size(fd: int, want: Wanted) -> None:
    if not want.options.pipe_size:
        return
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, want.options.pipe_size)
    except OSError as e:
        raise want.rejected("pipe_size", e.strerror or str(e), "see /proc/sys/fs/pipe-max-size") from e
