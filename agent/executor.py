# SPDX-License-Identifier: Apache-2.0
"""The executor's program: carries out the requests of one agent, and ends when that agent does.

Socket-activated by cleat-executor.socket. One agent at a time; who comes next is served by the next executor, which
is started then. What it has started and what has not moved to a scope of its own ends with it (KillMode=).
One thread and no event loop beside poll: mount namespaces are entered by this thread, and requests wait their turn.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from agent.errors import CleatError
from agent.spawn import request, wire
from agent.spawn.child import bounding_set, reap
from agent.systemd.notify_as import send_as
from agent.systemd.peer import peer_of

_LISTEN_FD = 3


class Executor:
    """Serves one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        # The id of the request by the pidfd of what it started.
        self._children: dict[int, int] = {}
        self._early: list[int] = []

    def serve(self) -> None:
        """Returns when the agent has gone."""
        self._answer(wire.Hello(bounding_set()))
        own = self._connection.fileno()
        while True:
            # Ends first: what waits for one is told before more is begun.
            for fd, _ in sorted(self._poll.poll(), key=lambda event: event[0] == own):
                if fd != own:
                    self._ended(fd)
                elif not self._heard():
                    return

    def _heard(self) -> bool:
        try:
            data, fds = wire.receive(self._connection)
        except ConnectionResetError:
            return False
        if not data:
            return False
        try:
            self._handle(wire.decode_question(data), fds)
        except msgspec.DecodeError as e:
            sys.stderr.write(f"<3>a message of the agent could not be read: {e}\n")
            _close(fds)
        return True

    def _handle(self, message: wire.Question, fds: list[int]) -> None:
        match message:
            case wire.MoreFds():
                self._early += fds
            case wire.Notify():
                _close(fds)
                self._answer(wire.Notified(message.id, send_as(message.pid, message.text)))
            case wire.Spawn():
                early, self._early = self._early, []
                try:
                    self._spawn(message, early, fds)
                finally:
                    _close([*early, *fds])

    def _spawn(self, message: wire.Spawn, early: list[int], fds: list[int]) -> None:
        try:
            asked = wire.long_request(fds[0]) if message.long else message.request
            if asked is None:
                raise CleatError("an empty request")
            pid = request.carry_out(asked, [*early, *(fds[1:] if message.long else fds)])
        except (CleatError, OSError) as e:
            self._answer(wire.Failed.of(message.id, e))
            return
        except (msgspec.DecodeError, IndexError) as e:
            self._answer(wire.Failed(message.id, CleatError.code, "a request that cannot be read", why=str(e)))
            return
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = message.id
        self._poll.register(pidfd, select.POLLIN)
        self._answer(wire.Started(message.id, pid), [pidfd])

    def _ended(self, pidfd: int) -> None:
        code = reap(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        self._answer(wire.Ended(self._children.pop(pidfd), code))

    def _answer(self, message: wire.Answer, fds: Sequence[int] = ()) -> None:
        # Nobody to tell: the next poll says so too.
        with suppress(BrokenPipeError, ConnectionResetError):
            wire.send(self._connection, wire.encode(message), fds)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def main() -> int:
    """Exit status 0 when the agent has gone, 1 where this was not started by cleat-executor.socket."""
    os.umask(0o022)
    gc.freeze()
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        sys.stderr.write("cleat-executor: is started by cleat-executor.socket, when the agent needs it\n")
        return 1
    listener = socket.socket(fileno=_LISTEN_FD)
    listener.set_inheritable(False)
    connection, _ = listener.accept()
    # Not held on: the next agent's connection starts the next executor.
    listener.close()
    if peer_of(connection).uid != os.geteuid():
        sys.stderr.write("<4>refused a client that is not the agent\n")
        return 1
    Executor(connection).serve()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
