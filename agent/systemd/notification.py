# SPDX-License-Identifier: Apache-2.0
"""One message of the sd_notify(3) protocol, read the way systemd reads it; pure.

A message is at most 4096 bytes of assignments, one per line. Of a repeated assignment the first one counts,
unknown ones are ignored, wrong ones are named in `refused` while the rest of the message holds. BARRIER=1
must be alone.
"""

from __future__ import annotations

import re
from enum import StrEnum

import msgspec

from agent.systemd.text import clean

MESSAGE_MAX = 4096
"""NOTIFY_BUFFER_MAX of systemd."""
FDS_MAX = 253
"""SCM_MAX_FD of the kernel, unix(7)."""
_STATUS_MAX = 1024
_ERRNO_MAX = 4095
_USEC_MAX = 2**64 - 2
_BUS_ERROR = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+", re.ASCII)
_NAME_MAX = 255
# Who the main process is and who may notify is for the agent to say, not for the container.
_FOREIGN = ("MAINPID", "MAINPIDFDID", "MAINPIDFD", "NOTIFYACCESS")


class Phase(StrEnum):
    """What a message says of the service's life."""

    READY = "ready"
    RELOADING = "reloading"
    STOPPING = "stopping"


class Notification(msgspec.Struct, frozen=True, kw_only=True):
    """A container's message. None = not said.

    `status` is one clean line, "" clears it. `bus_error` is a D-Bus error name. `watchdog_usec` and
    `extend_timeout_usec` are microseconds, `monotonic_usec` is CLOCK_MONOTONIC. `fd_store` asks to keep the
    fds that came with the message under `fd_name`, watched for a hang-up when `fd_poll`; `fd_store_remove`
    asks to drop those of that name. `barrier` was answered when it was read. `refused` names the assignments
    that were not taken.
    """

    ready: bool = False
    reloading: bool = False
    stopping: bool = False
    status: str | None = None
    errno: int | None = None
    bus_error: str | None = None
    exit_status: int | None = None
    watchdog: bool = False
    watchdog_trigger: bool = False
    watchdog_usec: int | None = None
    extend_timeout_usec: int | None = None
    monotonic_usec: int | None = None
    fd_store: bool = False
    fd_store_remove: bool = False
    fd_name: str | None = None
    fd_poll: bool = True
    barrier: bool = False
    refused: tuple[str, ...] = ()

    @property
    def phase(self) -> Phase | None:
        """The one phase of a message that names several: stopping before ready before reloading.

        READY=1 beside RELOADING=1 says that the reload is over already.
        """
        if self.stopping:
            return Phase.STOPPING
        if self.ready:
            return Phase.READY
        return Phase.RELOADING if self.reloading else None


class BadMessage(ValueError):
    """A message that is refused as a whole; the text says why."""


def parse(data: bytes, fds: int = 0) -> Notification:
    """Read one datagram that came with `fds` file descriptors. Raises BadMessage, and nothing else, for any input."""
    if len(data) > MESSAGE_MAX:
        raise BadMessage(f"longer than {MESSAGE_MAX} bytes")
    data = data.removesuffix(b"\0")
    if b"\0" in data:
        raise BadMessage("has a NUL byte inside")
    lines = [line for line in data.split(b"\n") if line]
    if b"BARRIER=1" in lines:
        if len(lines) > 1 or fds != 1:
            raise BadMessage("BARRIER=1 must be alone and have exactly one file descriptor")
        return Notification(barrier=True)
    return _Reader(lines).read(fds)


class _Reader:
    """Takes assignments apart, remembering what it refused."""

    def __init__(self, lines: list[bytes]) -> None:
        self._lines = frozenset(lines)
        self._values: dict[str, bytes] = {}
        for line in lines:
            name, equals, value = line.partition(b"=")
            if equals and name.isascii():
                self._values.setdefault(name.decode(), value)
        self._refused = [name for name in _FOREIGN if name in self._values]

    def read(self, fds: int) -> Notification:
        removes = self._has(b"FDSTOREREMOVE=1")
        name = self._fd_name()
        if removes and name is None:
            self._refused.append("FDSTOREREMOVE")
        stores = self._has(b"FDSTORE=1")
        if stores and not fds:
            self._refused.append("FDSTORE")
        return Notification(
            ready=self._has(b"READY=1"),
            reloading=self._has(b"RELOADING=1"),
            stopping=self._has(b"STOPPING=1"),
            status=self._status(),
            errno=self._number("ERRNO", _ERRNO_MAX),
            bus_error=self._bus_error(),
            exit_status=self._number("EXIT_STATUS", 255),
            watchdog=self._has(b"WATCHDOG=1"),
            watchdog_trigger=self._has(b"WATCHDOG=trigger"),
            watchdog_usec=self._number("WATCHDOG_USEC", _USEC_MAX, least=1),
            extend_timeout_usec=self._number("EXTEND_TIMEOUT_USEC", _USEC_MAX),
            monotonic_usec=self._number("MONOTONIC_USEC", _USEC_MAX),
            fd_store=stores and fds > 0,
            fd_store_remove=removes and name is not None,
            fd_name=name,
            fd_poll=not self._has(b"FDPOLL=0"),
            refused=tuple(self._refused),
        )

    def _has(self, line: bytes) -> bool:
        return line in self._lines

    def _number(self, name: str, most: int, *, least: int = 0) -> int | None:
        value = self._values.get(name)
        if value is None:
            return None
        if value.isdigit() and len(value) <= 20 and least <= int(value) <= most:
            return int(value)
        self._refused.append(name)
        return None

    def _text(self, name: str) -> str | None:
        value = self._values.get(name)
        if value is None:
            return None
        try:
            return value.decode()
        except UnicodeDecodeError:
            self._refused.append(name)
            return None

    def _status(self) -> str | None:
        text = self._text("STATUS")
        return None if text is None else clean(text, _STATUS_MAX)

    def _bus_error(self) -> str | None:
        name = self._text("BUSERROR")
        if name is None or (len(name) <= _NAME_MAX and _BUS_ERROR.fullmatch(name)):
            return name
        self._refused.append("BUSERROR")
        return None

    def _fd_name(self) -> str | None:
        name = self._text("FDNAME")
        if name is None or is_fd_name(name):
            return name
        self._refused.append("FDNAME")
        return None


def is_fd_name(name: str) -> bool:
    """Whether sd_notify(3) takes it as FDNAME=: 1 to 255 printable ASCII characters without colon."""
    return 0 < len(name) <= _NAME_MAX and name.isascii() and name.isprintable() and ":" not in name
