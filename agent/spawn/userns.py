# SPDX-License-Identifier: Apache-2.0
"""A user namespace to map mounts by (user_namespaces(7)). Nobody lives in it."""

from __future__ import annotations

import ctypes
import os
import select
from contextlib import suppress

from agent.errors import Unsupported

Ranges = tuple[tuple[int, int, int], ...]
"""Each: first id inside, first id outside, how many (the lines of /proc/PID/uid_map)."""

_CLONE_NEWUSER = 0x10000000
_PATIENCE_MSEC = 10_000
_HINT = "check sysctl user.max_user_namespaces, and the ranges in security.uid_map"


def user_namespace(uids: Ranges, gids: Ranges) -> int:
    """An fd of a fresh one with these mappings; the caller closes it. Raises Unsupported.

    Made by a fork, since a process cannot leave one again; the fork ends when the fd is there.
    """
    answer, answer_write = os.pipe2(os.O_CLOEXEC)
    hold, hold_write = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
    except OSError as e:
        for fd in (answer, answer_write, hold, hold_write):
            os.close(fd)
        raise Unsupported("cannot make a user namespace", why=f"fork: {e.strerror}", hint=_HINT) from e
    if not pid:
        _enter_and_wait(answer_write, hold, hold_write)
    os.close(answer_write)
    os.close(hold)
    try:
        number = _answer(answer)
        if number:
            raise OSError(number, os.strerror(number))
        _write_map(f"/proc/{pid}/uid_map", uids)
        _write_map(f"/proc/{pid}/gid_map", gids)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise Unsupported("cannot make a user namespace", why=e.strerror or str(e), hint=_HINT) from e
    finally:
        os.close(answer)
        os.close(hold_write)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _enter_and_wait(answer: int, hold: int, hold_write: int) -> None:
    """The fork's whole life; does not return."""
    try:
        os.close(hold_write)
        libc = ctypes.CDLL(None, use_errno=True)
        number = ctypes.get_errno() if libc.unshare(_CLONE_NEWUSER) else 0
        os.write(answer, bytes([min(number, 255)]))
        os.read(hold, 1)
    finally:
        os._exit(0)


def _answer(fd: int) -> int:
    """0, or what kept the fork from it as an errno number."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(_PATIENCE_MSEC):
        raise TimeoutError("unshare(2) did not return")
    said = os.read(fd, 1)
    if not said:
        raise ChildProcessError("the process that was to make it ended")
    return said[0]


def _write_map(path: str, ranges: Ranges) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, "".join(f"{inside} {outside} {count}\n" for inside, outside, count in ranges).encode())
    finally:
        os.close(fd)
