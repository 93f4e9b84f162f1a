# SPDX-License-Identifier: Apache-2.0
"""The service manager's fd store (sd_notify(3), FDSTORE=1): what the agent left there, and what sockets were passed.

Both arrive the same way at start, as named fds. Whoever needs one takes it by name; what nobody took is closed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from agent.systemd.notify import AgentNotify
from agent.systemd.passed_fds import PassedFd


class FdStore:
    def __init__(self, notify: AgentNotify, passed: Iterable[PassedFd] = ()) -> None:
        self._notify = notify
        self._passed: dict[str, list[int]] = {}
        for item in passed:
            self._passed.setdefault(item.name, []).append(item.fd)

    def take(self, name: str, fits: Callable[[int], bool] | None = None) -> int:
        """An fd that came under `name` (and fits), now the caller's; -1 when there is none."""
        waiting = self._passed.get(name, [])
        for fd in waiting:
            if fits is None or fits(fd):
                waiting.remove(fd)
                return fd
        return -1

    def store(self, name: str, fd: int) -> None:
        """Leave a copy for the next agent; the manager knows a copy that it has already."""
        self._notify.store_fd(name, fd, poll=False)

    def forget(self, name: str) -> None:
        self._notify.remove_fd(name)

    def close_rest(self, names: Callable[[str], bool]) -> None:
        """Close what nobody took, and drop it from the store where the name is one of ours."""
        for name, fds in self._passed.items():
            for fd in fds:
                os.close(fd)
            if fds and names(name):
                self.forget(name)
        self._passed.clear()
