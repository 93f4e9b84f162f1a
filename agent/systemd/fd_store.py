# SPDX-License-Identifier: Apache-2.0
"""The service manager's fd store (sd_notify(3), FDSTORE=1): what the agent left there, and what sockets were passed.

Both arrive the same way at start, as named fds. Names of ours contain a slash, which no unit's name has, so nothing
that a .socket unit passes is taken for one of ours. What is ours goes to whoever takes it by name, once; sockets of
.socket units stay here for as long as the agent runs, and whoever asks gets a copy: their definition may come late, or
go and come back.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable

from agent.systemd.notify import AgentNotify
from agent.systemd.passed_fds import PassedFd

_OURS = "cleat/"


def own_name(kind: str, key: int | str, container: str) -> str:
    """What an fd of ours is called in the store: the container last, so that the rest can be told apart from it."""
    return f"{_OURS}{kind}/{key}/{container}"


class FdStore:
    def __init__(self, notify: AgentNotify, passed: Iterable[PassedFd] = ()) -> None:
        self._notify = notify
        self._stored: dict[str, list[int]] = {}
        self._passed: list[PassedFd] = []
        self._lent: set[int] = set()
        for item in passed:
            if item.name.startswith(_OURS):
                self._stored.setdefault(item.name, []).append(item.fd)
            else:
                self._passed.append(item)

    def take(self, name: str) -> int:
        """The stored fd of that name, now the caller's; -1 when there is none."""
        waiting = self._stored.get(name)
        return waiting.pop() if waiting else -1

    def take_fitting(self, kind: str, container: str, fits: Callable[[int], bool]) -> tuple[str, int]:
        """A stored fd of that kind and container that `fits`, with its name; ("", -1) when there is none."""
        for name, waiting in self._stored.items():
            if name.startswith(f"{_OURS}{kind}/") and name.endswith(f"/{container}"):
                for fd in waiting:
                    if fits(fd):
                        waiting.remove(fd)
                        return name, fd
        return "", -1

    def take_all(self, kind: str) -> list[tuple[str, int]]:
        """Every stored fd of that kind, now the caller's, with its container."""
        begin = f"{_OURS}{kind}/"
        names = [name for name in self._stored if name.startswith(begin)]
        return [(name.removeprefix(begin).partition("/")[2], fd) for name in names for fd in self._stored.pop(name)]

    def borrow(self, names: Iterable[str], fits: Callable[[int], bool]) -> int:
        """A copy of a .socket unit's fd that `fits`, those called one of `names` first; -1 when there is none."""
        wanted = set(names)
        for item in sorted(self._passed, key=lambda item: item.name not in wanted):
            if fits(item.fd):
                self._lent.add(item.fd)
                return fcntl.fcntl(item.fd, fcntl.F_DUPFD_CLOEXEC, 3)
        return -1

    def borrow_rest(self) -> list[PassedFd]:
        """Copies of all that .socket units passed and nobody has borrowed, in their order."""
        rest = [item for item in self._passed if item.fd not in self._lent]
        self._lent |= {item.fd for item in rest}
        return [PassedFd(item.name, fcntl.fcntl(item.fd, fcntl.F_DUPFD_CLOEXEC, 3)) for item in rest]

    def store(self, name: str, fd: int, *, poll: bool = False) -> None:
        """Leave a copy for the next agent; with `poll` only until it hangs up."""
        self._notify.store_fd(name, fd, poll=poll)

    def forget(self, name: str) -> None:
        """Drop what is stored under `name`."""
        self._notify.remove_fd(name)

    def close_rest(self) -> None:
        """Close what of ours nobody took, and drop it from the store: it belonged to what is no more."""
        for name, fds in self._stored.items():
            for fd in fds:
                os.close(fd)
            if fds:
                self.forget(name)
        self._stored.clear()
