# SPDX-License-Identifier: Apache-2.0
"""The fds that the service manager passed at our start: sockets of .socket units and the fd store
(sd_listen_fds(3)).
"""

from __future__ import annotations

import fcntl
import os
import resource
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import MutableMapping

FIRST = 3
UNKNOWN = "unknown"
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


class PassedFd(msgspec.Struct, frozen=True):
    """A passed fd and its name: FileDescriptorName= of the socket unit, or what it was stored under."""

    name: str
    fd: int


def take_listen_fds(environment: MutableMapping[str, str] | None = None) -> list[PassedFd]:
    """Take them over, once: the variables are removed in any case, the fds made close-on-exec.

    Empty when LISTEN_PID is not this process: those fds are somebody else's and stay untouched. fd numbers
    that are not open are left out; with a wrong number of names all are called "unknown".
    """
    environ = os.environ if environment is None else environment
    pid, count, names, _ = (environ.pop(name, "") for name in _VARIABLES)
    if _number(pid) != os.getpid():
        return []
    # No more than can be open at all: the count comes from outside.
    total = min(_number(count), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    named = names.split(":") if names else []
    if len(named) != total:
        named = [UNKNOWN] * total
    found = zip(named, range(FIRST, FIRST + total), strict=True)
    return [PassedFd(name or UNKNOWN, fd) for name, fd in found if _take(fd)]


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _take(fd: int) -> bool:
    try:
        flags = fcntl.fcntl(fd, fcntl.F_GETFD)
        fcntl.fcntl(fd, fcntl.F_SETFD, flags | fcntl.FD_CLOEXEC)
    except OSError:
        return False
    return True
