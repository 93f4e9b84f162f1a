# SPDX-License-Identifier: Apache-2.0
"""The sockets of one container.

A socket listens as long as its definition stands: over restarts and crashes of the container, and through the service
manager's fd store over those of the agent. Nobody reads from it here; while the container is down the agent may poll it
to start the container on demand. Sockets of .socket units are taken over where they fit; those are the units' own,
which pass them at each start of the agent, so they are neither stored nor changed here.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from agent.container.kept import KeptFds
from agent.definition.model import Container, Socket
from agent.errors import CleatError
from agent.systemd import journal, sockets
from agent.systemd.fd_store import FdStore, own_name
from agent.systemd.passed_fds import PassedFd
from agent.systemd.socket_use import SocketUse

_KIND = "socket"


class Held(msgspec.Struct, frozen=True):
    """A socket that is open: what it is for, and its name in the store, "" for one that a .socket unit owns."""

    wanted: Socket
    fd: int
    stored_as: str = ""


class Listening:
    """Owns the fds. `open()` may be called again with a changed definition: what still fits is kept."""

    def __init__(self, container: Container, store: FdStore) -> None:
        self.container = container
        self.kept = KeptFds(container.name, store)
        self._store = store
        self._held: list[Held] = []
        self._passed: list[PassedFd] = []
        self._triggers: list[float] = []
        self._armed: list[int] = []
        self._uses: dict[int, SocketUse] = {}

    @property
    def is_open(self) -> bool:
        return [held.wanted for held in self._held] == list(self.container.socket)

    @property
    def is_armed(self) -> bool:
        """Whether a connection would start the container now."""
        return bool(self._armed)

    @property
    def on_demand(self) -> bool:
        """Whether a connection shall start the container."""
        return any(socket.on_demand for socket in self.container.socket)

    @property
    def fds(self) -> tuple[int, ...]:
        """In the order of the file, then what the container stored, as systemd passes them (sd_listen_fds(3))."""
        return (*(held.fd for held in self._held), *(item.fd for item in self._passed), *self.kept.fds)

    @property
    def names(self) -> tuple[str, ...]:
        return self._names(held.wanted for held in self._held)

    def names_with(self, container: Container) -> tuple[str, ...]:
        """The same for a start with all sockets of `container`, open already or not."""
        return self._names(container.socket)

    def _names(self, own: Iterable[Socket]) -> tuple[str, ...]:
        return (
            *(_fd_name(socket) for socket in own),
            *(item.name for item in self._passed),
            *(kept.name for kept in self.kept.all),
        )

    def make_blocking(self) -> None:
        """As systemd does before each start (systemd.exec(5), NonBlocking=): the last run may have changed it."""
        for held in self._held:
            os.set_blocking(held.fd, True)

    def pass_on(self, passed: Sequence[PassedFd]) -> None:
        """Sockets handed over by the caller's unit (sd_listen_fds(3)): passed on as they are, in their order."""
        self._passed = list(passed)

    def open(self, container: Container) -> None:
        """Have all sockets of `container` listening: kept, taken from the store or from systemd, or bound now.

        Raises DefinitionRejected for one that cannot be had; those that could are open.
        """
        self.disarm()
        self._uses.clear()
        old, self._held, self.container = self._held, [], container
        kept = [self._pick(old, wanted) for wanted in container.socket]
        # Given up before others are bound: a new socket may want the place of an old one.
        for held in old:
            self._give_up(held)
        failures: list[CleatError] = []
        for i, wanted in enumerate(container.socket):
            try:
                self._held.append(self._one(i, wanted, kept[i]))
            except CleatError as e:
                failures.append(e)
        if failures:
            raise failures[0]

    @staticmethod
    def _pick(old: list[Held], wanted: Socket) -> Held | None:
        """Take one that fits out of `old`."""
        for held in old:
            if sockets.matches(held.fd, wanted):
                old.remove(held)
                return held
        return None

    def _one(self, index: int, wanted: Socket, kept: Held | None) -> Held:
        name, file = self.container.name, self.container.source
        if kept is not None:
            held = msgspec.structs.replace(kept, wanted=wanted)
            return self._configured(index, held) if kept.wanted != wanted else held
        stored_as, fd = self._store.take_fitting(_KIND, name, lambda fd: sockets.matches(fd, wanted))
        if fd >= 0:
            return self._configured(index, Held(wanted, fd, stored_as))
        fd = self._store.borrow((wanted.name, name, f"{name}.socket"), lambda fd: sockets.matches(fd, wanted))
        if fd >= 0:
            journal.send(journal.Event.SOCKET_LISTENING, f"{name} takes over {_address(wanted)}", container=name)
            return Held(wanted, fd)
        fd = sockets.bind(wanted, index=index, container=name, file=file)
        stored_as = own_name(_KIND, os.fstat(fd).st_ino, name)
        self._store.store(stored_as, fd)
        journal.send(journal.Event.SOCKET_LISTENING, f"{name} listens on {_address(wanted)}", container=name)
        return Held(wanted, fd, stored_as)

    def _configured(self, index: int, held: Held) -> Held:
        """Set the table's options on a socket that was open before. It is given up where that cannot be done."""
        if not held.stored_as:
            return held
        try:
            sockets.reconfigure(
                held.fd, held.wanted, index=index, container=self.container.name, file=self.container.source
            )
        except CleatError:
            self._give_up(held)
            raise
        return held

    def _give_up(self, held: Held) -> None:
        """Nobody listens there any more, but for the .socket unit that it came from."""
        if held.stored_as:
            self._store.forget(held.stored_as)
            sockets.remove_node(held.fd, held.wanted)
        os.close(held.fd)

    def close(self) -> None:
        """The definition is gone: nobody listens any more."""
        self.disarm()
        for held in self._held:
            self._give_up(held)
        self._held = []
        self.kept.drop(self.kept.all)
        self.release()

    def release(self) -> None:
        """The agent ends: close our copies, those in the store live on."""
        self.disarm()
        for fd in (*(held.fd for held in self._held), *(item.fd for item in self._passed)):
            os.close(fd)
        self._held, self._passed = [], []
        self.kept.release()

    # Starting on demand

    def arm(self, on_trigger: Callable[[], None]) -> None:
        """Poll the sockets until the first connection or datagram, then call `on_trigger` once."""
        if self._armed:
            return
        loop = asyncio.get_running_loop()
        self._armed = [held.fd for held in self._held if held.wanted.on_demand]
        for fd in self._armed:
            loop.add_reader(fd, self._triggered, on_trigger)

    def disarm(self) -> None:
        loop = asyncio.get_running_loop() if self._armed else None
        for fd in self._armed:
            assert loop is not None
            loop.remove_reader(fd)
        self._armed = []

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
        """After how many seconds without connections and datagrams the container is stopped; infinite for never."""
        return min((s.stop_idle_sec for s in self.container.socket), default=float("inf"))

    async def is_used(self) -> bool:
        """Whether there is a connection, accepted or waiting, or was a datagram since this was asked last.

        Raises Unsupported where nobody can tell, DeadlineExceeded.
        """
        uses = [self._uses.setdefault(held.fd, SocketUse(held.fd)) for held in self._held]
        return any([await use.is_used() for use in uses])


def _fd_name(socket: Socket) -> str:
    """systemd's own word for a socket without a name is `unknown` (sd_listen_fds(3))."""
    return socket.name or "unknown"


def _address(socket: Socket) -> str:
    return (
        socket.listen_stream or socket.listen_datagram or socket.listen_sequential_packet or socket.listen_fifo or "?"
    )
