# SPDX-License-Identifier: Apache-2.0
"""The fds that a payload asked to be kept (sd_notify(3), FDSTORE=1): given back at its next start, behind its sockets.

Copies lie in the service manager's store too, so they survive the agent. As in systemd an fd whose other side hung up
is dropped, unless the payload said FDPOLL=0.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import msgspec

from agent.systemd.fd_store import FdStore, own_name
from agent.systemd.notification import Notification

_KIND = "stored"
_DUPFD_QUERY = 1027  # linux/fcntl.h
_DEFAULT_NAME = "stored"  # systemd's (sd_notify(3), FDNAME=)


class KeptFd(msgspec.Struct, frozen=True, array_like=True):
    """What the record says of one: its number in the store, the payload's name for it, whether a hang-up drops it."""

    key: int
    name: str
    poll: bool = True


class KeptFds:
    """Owns the fds. `on_change` is called when their list is another than before."""

    def __init__(self, container: str, store: FdStore, on_change: Callable[[], None] = lambda: None) -> None:
        self.container = container
        self.on_change = on_change
        self._store = store
        self._fds: dict[KeptFd, int] = {}
        self._next = 0
        self._hangups: select.epoll | None = None

    @property
    def all(self) -> tuple[KeptFd, ...]:
        """In the order in which they were stored."""
        return tuple(self._fds)

    @property
    def fds(self) -> tuple[int, ...]:
        return tuple(self._fds.values())

    def hear(self, message: Notification, fds: Sequence[int], most: int) -> int:
        """FDSTORE=1 and FDSTOREREMOVE=1; takes `fds` over. How many were refused: more than `most`."""
        name = message.fd_name or _DEFAULT_NAME
        if message.fd_store_remove:
            self.drop(kept for kept in self.all if kept.name == name)
        refused = 0
        for fd in fds:
            if self._has(fd):
                os.close(fd)
            elif len(self._fds) >= most:
                refused += 1
                os.close(fd)
            else:
                kept = KeptFd(self._next, name, message.fd_poll)
                self._add(kept, fd)
                self._store.store(self._stored_name(kept), fd)
        self.on_change()
        return refused

    def _add(self, kept: KeptFd, fd: int) -> None:
        self._fds[kept] = fd
        self._next = max(self._next, kept.key + 1)
        if kept.poll:
            if self._hangups is None:
                self._hangups = select.epoll()
                asyncio.get_running_loop().add_reader(self._hangups.fileno(), self._hung_up)
            with suppress(PermissionError):  # files have no other side (epoll_ctl(2))
                self._hangups.register(fd, 0)

    def _hung_up(self) -> None:
        assert self._hangups is not None
        gone = {fd for fd, _ in self._hangups.poll(0)}
        self.drop(kept for kept, fd in list(self._fds.items()) if fd in gone)
        self.on_change()

    def _has(self, fd: int) -> bool:
        """Whether it is kept already: the payload may send what it was given."""
        return any(_is_same(fd, kept) for kept in self._fds.values())

    def drop(self, gone: Iterable[KeptFd]) -> None:
        """Close some of them, here and in the store."""
        for kept in list(gone):
            fd = self._fds.pop(kept)
            if self._hangups is not None:
                with suppress(OSError):
                    self._hangups.unregister(fd)
            os.close(fd)
            self._store.forget(self._stored_name(kept))

    def _stored_name(self, kept: KeptFd) -> str:
        return own_name(_KIND, kept.key, self.container)

    def take_back(self, found: Iterable[KeptFd]) -> None:
        """After an agent restart: what a record names, out of the service manager's store."""
        for kept in found:
            fd = self._store.take(self._stored_name(kept))
            if fd >= 0:
                self._add(kept, fd)

    def release(self) -> None:
        """Close our copies; those in the store live on."""
        if self._hangups is not None:
            asyncio.get_running_loop().remove_reader(self._hangups.fileno())
            self._hangups.close()
            self._hangups = None
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


def _is_same(fd: int, other: int) -> bool:
    """Whether both are one open file (F_DUPFD_QUERY, Linux 6.10); on older kernels told for sockets and pipes only."""
    try:
        return bool(fcntl.fcntl(fd, _DUPFD_QUERY, other))
    except OSError:
        found = os.fstat(fd)
        has_own_inode = stat.S_ISSOCK(found.st_mode) or stat.S_ISFIFO(found.st_mode)
        return has_own_inode and os.path.samestat(found, os.fstat(other))
