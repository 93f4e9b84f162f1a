# SPDX-License-Identifier: Apache-2.0
"""What the agent tells the service manager about itself (sd_notify(3)).

Nothing here raises for a manager that is away or slow: the calls return False, and the manager's own
timeouts speak.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from agent.errors import DeadlineExceeded, InvalidArgument
from agent.systemd.datagram import Datagrams
from agent.systemd.notification import is_fd_name
from agent.systemd.notify_as import encoded
from agent.systemd.text import one_line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, MutableMapping, Sequence

logger = logging.getLogger(__name__)

_PATIENCE = 0.2
_MORE_TIME_SEC = 5.0


def fd_name(name: str) -> str:
    """`name` when it is a valid FDNAME=. Raises InvalidArgument."""
    if not is_fd_name(name):
        raise InvalidArgument(
            f"{name!r} cannot name a stored file descriptor", hint="use up to 255 ASCII characters, no colon"
        )
    return name


class AgentNotify:
    """The agent's own line to its service manager; every call is a no-op when it was not started by one.

    Takes NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID and FDSTORE out of the environment at once, so no child
    inherits them.
    """

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        environ = os.environ if environment is None else environment
        address = environ.pop("NOTIFY_SOCKET", "")
        self._watchdog_usec = _number(environ.pop("WATCHDOG_USEC", ""))
        watchdog_pid = environ.pop("WATCHDOG_PID", "")
        if watchdog_pid and _number(watchdog_pid) != os.getpid():
            self._watchdog_usec = 0
        environ.pop("FDSTORE", None)
        if address and address[0] not in "/@":
            logger.warning("NOTIFY_SOCKET=%s is of an unknown kind: nobody will hear of readiness", address)
            address = ""
        self._socket = Datagrams(address) if len(address) > 1 else None

    @property
    def is_active(self) -> bool:
        """Whether somebody listens."""
        return self._socket is not None

    @property
    def watchdog_usec(self) -> int:
        """Time within which watchdog() must be called again, 0 = never (sd_watchdog_enabled(3))."""
        return self._watchdog_usec if self._socket is not None else 0

    def send(self, *assignments: str, fds: Sequence[int] = ()) -> bool:
        """Send assignments in one message. False when it could not be delivered or nobody listens."""
        if self._socket is None:
            return False
        text = "\n".join(one_line(assignment) for assignment in assignments)
        try:
            self._socket.send(encoded(text), fds=fds, patience=_PATIENCE)
        except OSError as e:
            logger.warning("the service manager did not take %r: %s", text, e)
            return False
        return True

    def ready(self, status: str = "") -> bool:
        """Started, or done with reloading()."""
        return self.send("READY=1", *_status(status))

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self.send(f"STATUS={text}")

    def reloading(self, status: str = "") -> bool:
        """A reload begins; ready() ends it. Call it after the signal that asked for it (Type=notify-reload
        compares times).
        """
        return self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", *_status(status))

    def stopping(self, status: str = "") -> bool:
        return self.send("STOPPING=1", *_status(status))

    def watchdog(self) -> bool:
        """Alive. At least twice per watchdog_usec."""
        return self.send("WATCHDOG=1") if self.watchdog_usec else False

    def extend_timeout(self, usec: int) -> bool:
        """Ask for `usec` more from now for the running start, stop or runtime timeout; to be repeated before
        it is over.
        """
        return self.send(f"EXTEND_TIMEOUT_USEC={usec}")

    @asynccontextmanager
    async def more_time(self) -> AsyncIterator[None]:
        """Within this block the manager's patience does not end while the event loop turns (EXTEND_TIMEOUT_USEC=)."""
        task = asyncio.create_task(self._ask_for_time())
        try:
            yield
        finally:
            task.cancel()

    async def _ask_for_time(self) -> None:
        while True:
            await asyncio.sleep(_MORE_TIME_SEC)
            self.extend_timeout(int(3 * _MORE_TIME_SEC * 1e6))

    def errno(self, number: int, status: str = "") -> bool:
        """Why the agent fails, as an errno number."""
        return self.send(f"ERRNO={number}", *_status(status))

    def store_fd(self, name: str, fd: int, *, poll: bool = True) -> bool:
        """Leave a copy of `fd` with the service manager, to be passed back at the next start (FDSTORE=1).

        With `poll` it is dropped there on a hang-up; say False for what may hang up and still be wanted.
        True only means sent: a full store is silent (sd_notify(3)). Raises InvalidArgument for a bad name.
        """
        return self.send("FDSTORE=1", f"FDNAME={fd_name(name)}", *([] if poll else ["FDPOLL=0"]), fds=[fd])

    def remove_fd(self, name: str) -> bool:
        """Drop every stored fd of that name. Raises InvalidArgument for a bad name."""
        return self.send("FDSTOREREMOVE=1", f"FDNAME={fd_name(name)}")

    async def barrier(self, timeout: float = 5.0) -> None:  # noqa: ASYNC109 mapped to our own error
        """Wait until the manager has handled all that was sent before (sd_notify_barrier(3)). Raises
        DeadlineExceeded.
        """
        if self._socket is None:
            return
        ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        loop = asyncio.get_running_loop()
        passed = asyncio.Event()
        # The manager closes its end; ours then reads as ended.
        loop.add_reader(ours, passed.set)
        try:
            try:
                sent = self.send("BARRIER=1", fds=[theirs])
            finally:
                os.close(theirs)
            if sent:
                async with asyncio.timeout(timeout):
                    await passed.wait()
        except TimeoutError as e:
            raise DeadlineExceeded(f"the service manager did not handle our notifications within {timeout:g} s") from e
        finally:
            loop.remove_reader(ours)
            os.close(ours)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _status(text: str) -> list[str]:
    return [f"STATUS={text}"] if text else []
