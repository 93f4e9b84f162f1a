# SPDX-License-Identifier: Apache-2.0
"""The sockets of one container, and the fds it asked to be kept (FDSTORE=1).

A socket listens as long as its definition stands: over restarts and crashes of the container, and through the service
manager's fd store over those of the agent. Nobody reads from it here; while the container is down the agent may poll it
to start the container on demand.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence

from agent.definition.model import Container, Socket
from agent.errors import CleatError
from agent.systemd import journal, sockdiag, sockets
from agent.systemd.fd_store import FdStore
from agent.systemd.notification import Notification


class Listening:
    """Owns the fds. `open()` may be called again with a changed definition: what still fits is kept."""

    def __init__(self, container: Container, store: FdStore) -> None:
        self.container = container
        self._store = store
        self._fds: list[tuple[Socket, int]] = []
        self._kept: list[tuple[str, int]] = []
        self._triggers: list[float] = []
        self._armed = False

    @property
    def is_open(self) -> bool:
        return len(self._fds) == len(self.container.socket)

    @property
    def on_demand(self) -> bool:
        """Whether a connection shall start the container."""
        return any(socket.on_demand for socket in self.container.socket)

    @property
    def fds(self) -> tuple[int, ...]:
        """In the order of the file, then what the container stored, as systemd passes them (sd_listen_fds(3))."""
        return (*(fd for _, fd in self._fds), *(fd for _, fd in self._kept))

    @property
    def names(self) -> tuple[str, ...]:
        return (*(_fd_name(socket) for socket, _ in self._fds), *(name for name, _ in self._kept))

    def take_passed(self, passed: Sequence[tuple[str, int]]) -> None:
        """Sockets handed over by the caller's unit (sd_listen_fds(3)): passed on as they are, in their order."""
        self._kept = list(passed)

    def open(self, container: Container) -> None:
        """Have all sockets of `container` listening: kept, taken from the store or from systemd, or bound now.

        Raises DefinitionRejected for one that cannot be had; those that could stay open.
        """
        old, self._fds, self.container = self._fds, [], container
        try:
            for i, wanted in enumerate(container.socket):
                self._fds.append((wanted, self._one(i, wanted, old)))
        finally:
            for socket, fd in old:
                sockets.remove_node(fd, socket)
                os.close(fd)
            self._store_all(len(old))

    def _one(self, index: int, wanted: Socket, old: list[tuple[Socket, int]]) -> int:
        name, file = self.container.name, self.container.source
        for item in old:
            if sockets.matches(item[1], wanted):
                old.remove(item)
                return self._again(index, wanted, item[1])
        for passed in (self._stored_name(index), wanted.name, name):
            fd = self._store.take(passed, lambda fd: sockets.matches(fd, wanted)) if passed else -1
            if fd >= 0:
                return self._again(index, wanted, fd)
        fd = sockets.bind(wanted, index=index, container=name, file=file)
        journal.send(journal.Event.SOCKET_LISTENING, f"{name} listens on {_address(wanted)}", container=name)
        return fd

    def _again(self, index: int, wanted: Socket, fd: int) -> int:
        try:
            sockets.reconfigure(fd, wanted, index=index, container=self.container.name, file=self.container.source)
        except CleatError:
            os.close(fd)
            raise
        return fd

    def _stored_name(self, index: int) -> str:
        return f"socket-{index}-{self.container.name}"

    def _store_all(self, formerly: int) -> None:
        for i, (_, fd) in enumerate(self._fds):
            self._store.store(self._stored_name(i), fd)
        for i in range(len(self._fds), formerly):
            self._store.forget(self._stored_name(i))

    def close(self) -> None:
        """The definition is gone: nobody listens any more."""
        self.disarm()
        for i, (socket, fd) in enumerate(self._fds):
            self._store.forget(self._stored_name(i))
            sockets.remove_node(fd, socket)
            os.close(fd)
        self._fds = []
        self._drop_kept(lambda _: True)

    def release(self) -> None:
        """The agent ends: close our copies, those in the store live on."""
        self.disarm()
        for fd in self.fds:
            os.close(fd)
        self._fds, self._kept = [], []

    # Starting on demand

    def arm(self, on_trigger: Callable[[], None]) -> None:
        """Poll the sockets until the first connection or datagram, then call `on_trigger` once."""
        if self._armed:
            return
        self._armed = True
        loop = asyncio.get_running_loop()
        for socket, fd in self._fds:
            if socket.on_demand:
                loop.add_reader(fd, self._triggered, on_trigger)

    def disarm(self) -> None:
        if self._armed:
            self._armed = False
            loop = asyncio.get_running_loop()
            for socket, fd in self._fds:
                if socket.on_demand:
                    loop.remove_reader(fd)

    def _triggered(self, on_trigger: Callable[[], None]) -> None:
        self.disarm()
        on_trigger()

    def trigger_limit_hit(self) -> bool:
        """Count a start on demand; True when there were too many (TriggerLimitBurst= in TriggerLimitIntervalSec=)."""
        socket = next(socket for socket in self.container.socket if socket.on_demand)
        now = time.monotonic()
        recent = [t for t in self._triggers if now - t < socket.trigger_limit_interval_sec]
        self._triggers = [*recent, now]
        return 0 < socket.trigger_limit_burst <= len(recent)

    def describe(self) -> str:
        """The addresses, for people."""
        return ", ".join(_address(socket) for socket in self.container.socket)

    @property
    def stop_idle_sec(self) -> float:
        """After how many seconds without a connection the container is stopped; infinite for never."""
        return min((s.stop_idle_sec for s in self.container.socket), default=float("inf"))

    async def connections(self) -> int:
        """Connections of all listening sockets together, those that wait to be accepted included."""
        return sum([await sockdiag.count_connections(fd) for _, fd in self._fds])

    # The payload's own fd store

    def keep_stored(self, message: Notification, fds: Sequence[int]) -> None:
        """FDSTORE=1 and FDSTOREREMOVE=1 of the payload; beyond file_descriptor_store_max fds are closed."""
        name = message.fd_name or "stored"
        if message.fd_store_remove:
            self._drop_kept(lambda kept: kept == name)
        for fd in fds:
            if len(self._kept) >= self.container.service.file_descriptor_store_max or self._has(fd):
                os.close(fd)
                continue
            self._kept.append((name, fd))
        self._store_kept()

    def _has(self, fd: int) -> bool:
        found = os.fstat(fd)
        return any(os.path.samestat(found, os.fstat(kept)) for _, kept in self._kept)

    def _drop_kept(self, gone: Callable[[str], bool]) -> None:
        for i in range(len(self._kept)):
            self._store.forget(self._kept_name(i))
        for name, fd in self._kept:
            if gone(name):
                os.close(fd)
        self._kept = [(name, fd) for name, fd in self._kept if not gone(name)]
        self._store_kept()

    def _kept_name(self, index: int) -> str:
        return f"stored-{index}-{self.container.name}"

    def _store_kept(self) -> None:
        for i, (_, fd) in enumerate(self._kept):
            self._store.store(self._kept_name(i), fd)

    @property
    def kept_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self._kept)

    def take_kept(self, names: Sequence[str]) -> None:
        """After an agent restart: the payload's stored fds back out of the service manager's store."""
        for i, name in enumerate(names):
            fd = self._store.take(self._kept_name(i))
            if fd >= 0:
                self._kept.append((name, fd))


def _fd_name(socket: Socket) -> str:
    """systemd's own word for a socket without a name is `unknown` (sd_listen_fds(3))."""
    return socket.name or "unknown"


def _address(socket: Socket) -> str:
    return (
        socket.listen_stream or socket.listen_datagram or socket.listen_sequential_packet or socket.listen_fifo or "?"
    )


def is_ours(name: str) -> bool:
    """Whether a name in the service manager's store is one that the agent gives."""
    return name.startswith(("socket-", "stored-", "notify-"))
