# SPDX-License-Identifier: Apache-2.0
"""The agent's D-Bus API for a command that must start fast: blocking calls on the bus socket, no event loop.

Several calls may be under way at once: `send` gives a serial, `receive` the next answer. Looking has a
deadline here. Calls that last as long as a container may (start, wait, pull) have none: the agent bounds
them by the definition's own timeouts, systemd's watchdog bounds the agent, and the bus answers for a dead
agent.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, Self

from agent.cli import wire
from agent.errors import (
    DBUS_ERROR_PREFIX,
    AccessDenied,
    AgentUnreachable,
    CleatError,
    DeadlineExceeded,
    InvalidArgument,
    Unsupported,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

NAME = "org.cleat.Agent1"
PATH = "/org/cleat/Agent1"
INTERFACE = "org.cleat.Agent1.Manager"
QUERY_SEC = 25.0  # sd-bus' own default
_FREEDESKTOP = "org.freedesktop.DBus.Error."
_DRIVER = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
AGENT_BACK = 0
"""Stands for the serial of a call in what `ready` gives: an agent has come to the bus. No call has it."""
_CHUNK = 1 << 16


class Bus:
    """A connection to the system's bus, or with `user` to the bus of the caller's user manager."""

    def __init__(self, *, user: bool = False) -> None:
        self.user = user
        self._buffer = bytearray()
        self._serial = 0
        self._prompt: AbstractContextManager[None] | None = None
        self._deadline: float | None = None
        self._connect()

    def _connect(self) -> None:
        self._deadline = time.monotonic() + QUERY_SEC
        self._socket = _connect(address(user=self.user))
        self._authenticate()
        self._await(self._queue(*_DRIVER, "Hello"))

    def reconnect(self) -> None:
        """A new connection in place of one that broke; calls and matches of the old one are gone."""
        self._socket.close()
        self._buffer.clear()
        self._connect()

    def watch_agent(self) -> None:
        """From now on `ready` says when an agent comes to the bus."""
        rule = f"type='signal',sender='{_DRIVER[0]}',member='NameOwnerChanged',arg0='{NAME}'"
        self._deadline = time.monotonic() + QUERY_SEC
        self._queue(*_DRIVER, "AddMatch", "s", (rule,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        if self._prompt:
            self._prompt.__exit__(None, None, None)

    def fileno(self) -> int:
        return self._socket.fileno()

    def query(self, member: str, signature: str = "", *values: Any) -> tuple[Any, ...]:
        """Call a method that only looks; answered within QUERY_SEC."""
        return self.call(member, signature, *values, interactive=False, timeout=QUERY_SEC)

    def call(
        self,
        member: str,
        signature: str = "",
        *values: Any,
        interactive: bool = True,
        timeout: float | None = None,
    ) -> tuple[Any, ...]:
        """Call a method and wait for its answer; `interactive` lets polkit ask for a password.

        Raises the CleatError that the agent's error name stands for, AgentUnreachable, DeadlineExceeded.
        """
        serial = self.send(member, signature, *values, interactive=interactive)
        self._deadline = None if timeout is None else time.monotonic() + timeout
        return self._await(serial)

    def send(self, member: str, signature: str = "", *values: Any, interactive: bool = True) -> int:
        """Send a call; its answer comes out of `receive` with this serial."""
        if interactive and not self.user and os.geteuid():
            self._prepare_prompt()
        self._deadline = time.monotonic() + QUERY_SEC
        return self._queue(NAME, PATH, INTERFACE, member, signature, values, interactive=interactive)

    def receive(self) -> tuple[int, tuple[Any, ...] | CleatError]:
        """Wait for the next answer, however long it takes: (serial, values or error)."""
        self._deadline = None
        return self._answer()

    def ready(self) -> Iterator[tuple[int, tuple[Any, ...] | CleatError]]:
        """The answers that are already here; for callers that poll `fileno` themselves."""
        self._fill()
        while message := self._take():
            if message.kind in {wire.METHOD_RETURN, wire.ERROR}:
                yield message.reply_to, _outcome(message, user=self.user)
            elif message.kind == wire.SIGNAL and message.body[:1] == (NAME,) and any(message.body[2:]):
                yield AGENT_BACK, ()

    def _prepare_prompt(self) -> None:
        from agent.cli import polkit

        if self._prompt is None and polkit.may_ask():
            self._prompt = polkit.password_prompt()
            self._prompt.__enter__()

    def _await(self, serial: int) -> tuple[Any, ...]:
        while True:
            answered, outcome = self._answer()
            if answered != serial:
                continue
            if isinstance(outcome, CleatError):
                raise outcome
            return outcome

    def _answer(self) -> tuple[int, tuple[Any, ...] | CleatError]:
        while True:
            message = self._take()
            if message is None:
                self._wait(select.POLLIN)
                self._fill()
            elif message.kind in {wire.METHOD_RETURN, wire.ERROR}:
                return message.reply_to, _outcome(message, user=self.user)

    def _queue(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        values: tuple[Any, ...] = (),
        *,
        interactive: bool = False,
    ) -> int:
        self._serial += 1
        flags = wire.NO_AUTO_START | (wire.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else 0)
        target = wire.Target(destination, path, interface, member)
        try:
            self._write(wire.call(self._serial, target, signature, values, flags))
        except (wire.WireError, struct.error) as error:
            raise InvalidArgument("cannot send this to the agent", why=str(error)) from error
        return self._serial

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                self._wait(select.POLLOUT)
            except OSError as error:
                raise AgentUnreachable("the bus closed the connection", why=error.strerror or "") from error

    def _take(self) -> wire.Message | None:
        try:
            return wire.take(self._buffer)
        except wire.WireError as error:
            raise AgentUnreachable("the bus sent what is no D-Bus message", why=str(error)) from error

    def _fill(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            raise AgentUnreachable("the connection to the bus broke", why=error.strerror or "") from error
        if not data:
            raise AgentUnreachable("the bus closed the connection")
        self._buffer += data

    def _wait(self, events: int) -> None:
        poll = select.poll()
        poll.register(self._socket, events)
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        if not poll.poll(None if left is None else left * 1000):
            raise DeadlineExceeded("the agent did not answer in time", hint="see systemctl status cleat")

    def _authenticate(self) -> None:
        """EXTERNAL: the bus knows us by the socket's credentials (D-Bus Specification, "Authentication")."""
        self._write(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
        while b"\r\n" not in self._buffer:
            self._wait(select.POLLIN)
            self._fill()
        line, _, rest = bytes(self._buffer).partition(b"\r\n")
        if not line.startswith(b"OK "):
            raise AccessDenied("the bus does not let this user in", why=ascii(line.decode(errors="replace")))
        self._buffer = bytearray(rest)
        self._write(b"BEGIN\r\n")


def ask(member: str, signature: str = "", *values: Any, user: bool) -> tuple[Any, ...]:
    """One query on a connection of its own."""
    with Bus(user=user) as bus:
        return bus.query(member, signature, *values)


def tell(member: str, signature: str = "", *values: Any, user: bool) -> tuple[Any, ...]:
    """One call that polkit may ask a password for, on a connection of its own."""
    with Bus(user=user) as bus:
        return bus.call(member, signature, *values)


def address(*, user: bool) -> str:
    """The bus address by the variables that sd-bus reads (sd_bus_open_system(3), sd_bus_open_user(3))."""
    if not user:
        return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or "unix:path=/run/dbus/system_bus_socket"
    if given := os.environ.get("DBUS_SESSION_BUS_ADDRESS"):
        return given
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if not runtime:
        raise AgentUnreachable(
            "there is no user bus here", why="neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set"
        )
    return f"unix:path={runtime}/bus"


def socket_names(text: str) -> list[str]:
    """The unix sockets of a bus address, in order; an abstract one begins with a NUL."""
    names = []
    for entry in text.split(";"):
        transport, _, options = entry.partition(":")
        if transport != "unix":
            continue
        keys = dict(option.partition("=")[::2] for option in options.split(","))
        if "path" in keys:
            names.append(_unescape(keys["path"]))
        elif "abstract" in keys:
            names.append("\0" + _unescape(keys["abstract"]))
    return names


def _unescape(value: str) -> str:
    head, *rest = value.split("%")
    try:
        raw = os.fsencode(head)
        for part in rest:
            raw += bytes([int(part[:2], 16)]) + os.fsencode(part[2:])
    except ValueError:
        raise AgentUnreachable(f"malformed bus address {value!r}") from None
    return os.fsdecode(raw)


def _connect(text: str) -> socket.socket:
    why = "no unix socket in it"
    for name in socket_names(text):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(QUERY_SEC)
        try:
            connection.connect(name)
        except OSError as error:
            connection.close()
            why = error.strerror or str(error)
        else:
            connection.settimeout(0)
            return connection
    raise AgentUnreachable(f"cannot connect to the bus at {text}", why=why)


def _outcome(message: wire.Message, *, user: bool) -> tuple[Any, ...] | CleatError:
    if message.kind == wire.METHOD_RETURN:
        return message.body
    text = message.body[0] if message.body and isinstance(message.body[0], str) else ""
    return error_of(message.error_name, text, user=user)


def error_of(name: str, text: str, *, user: bool = False) -> CleatError:
    """What a D-Bus error name and message mean to the person at the terminal."""
    if name.startswith(DBUS_ERROR_PREFIX):
        return _family().get(name, CleatError)(text or name)
    systemctl = "systemctl --user" if user else "systemctl"
    match name.removeprefix(_FREEDESKTOP):
        case "ServiceUnknown" | "NameHasNoOwner":
            return AgentUnreachable("the agent is not running", hint=f"{systemctl} start cleat")
        case "NoReply" | "Disconnected":
            return AgentUnreachable("the agent went away before it answered", hint=f"see {systemctl} status cleat")
        case "AccessDenied":
            return AccessDenied("not permitted for this user", hint="run it as root or with sudo")
        case "InteractiveAuthorizationRequired":
            return AccessDenied("this needs authentication", hint="run it as root or with sudo")
        case "UnknownMethod" | "UnknownInterface" | "UnknownObject" | "InvalidArgs" | "InvalidSignature":
            return Unsupported(
                "the running agent is of another version than this command",
                why=text,
                hint=f"{systemctl} restart cleat",
            )
        case "Timeout" | "TimedOut":
            return DeadlineExceeded("the agent did not answer in time", why=text, hint=f"see {systemctl} status cleat")
        case _:
            return CleatError(text or name)


def _family() -> dict[str, type[CleatError]]:
    found: dict[str, type[CleatError]] = {}
    rest: list[type[CleatError]] = [CleatError]
    while rest:
        kind = rest.pop()
        found[kind.dbus_name()] = kind
        rest += kind.__subclasses__()
    return found
