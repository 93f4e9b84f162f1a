# SPDX-License-Identifier: Apache-2.0
"""One child with an exact fd table, by posix_spawn(3): no code of ours runs between fork and exec."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.errors import CleatError, CommandNotExecutable, CommandNotFound

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_RESET_SIGNALS = (
    signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGCHLD,
)


def base_environment() -> dict[str, str]:
    """The environment of every tool: a fixed PATH and UTF-8, nothing inherited."""
    return {"PATH": _DEFAULT_PATH, "LC_CTYPE": "C.UTF-8"}


def bounding_set() -> int:
    """The capabilities that what this process starts can have at most, as a mask (proc_pid_status(5), CapBnd)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            return int(line.split()[1], 16)
    return -1


@functools.cache
def null_fd() -> int:
    """/dev/null for reading and writing, opened once."""
    fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) if fd < 10 else fd


def start(
    argv: Sequence[str], *, env: Mapping[str, str], fds: Sequence[int], new_group: bool = True, program: int = -1
) -> int:
    """Start `argv` (absolute path first, or looked up in env's PATH) with child fd i being our `fds[i]`, and no other.

    With `program` that fd is executed, and argv[0] only a name. Returns the pid, which the caller has to wait for.
    Raises CommandNotFound or CommandNotExecutable with the kernel's reason.
    """
    count = len(fds)
    moved: list[int] = []
    try:
        actions: list[tuple[int, int, int]] = []
        for target, source in enumerate(fds):
            if source < count:
                source = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, count)
                moved.append(source)
            actions.append((os.POSIX_SPAWN_DUP2, source, target))
        if 0 <= program < count:
            program = fcntl.fcntl(program, fcntl.F_DUPFD_CLOEXEC, count)
            moved.append(program)
        path = argv[0] if program < 0 else f"/proc/self/fd/{program}"
        spawn = os.posix_spawn if "/" in path else os.posix_spawnp
        group: dict[str, Any] = {"setpgroup": 0} if new_group else {}
        return spawn(
            path, list(argv), dict(env), file_actions=actions, setsigmask=(), setsigdef=_RESET_SIGNALS, **group
        )
    except OSError as e:
        raise _why(argv, e) from e
    finally:
        for fd in moved:
            os.close(fd)


def reap(pidfd: int) -> int:
    """The exit code of a child that has ended, 128+n when signal n ended it (waitid(2))."""
    info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    assert info is not None
    return info.si_status if info.si_code == os.CLD_EXITED else 128 + info.si_status


def _why(argv: Sequence[str], e: OSError) -> CleatError:
    command = argv[0]
    if isinstance(e, FileNotFoundError):
        return CommandNotFound(f"cannot run {command}", why=e.strerror or "", hint=f"install {Path(command).name}")
    if isinstance(e, PermissionError) or e.errno in {errno.ENOEXEC, errno.ELIBBAD}:
        return CommandNotExecutable(
            f"cannot run {command}", why=e.strerror or "", hint=f"check the mode and file type of {command}"
        )
    return CleatError(f"cannot run {command}", why=e.strerror or str(e))
