# SPDX-License-Identifier: Apache-2.0
"""The D-Bus connection: calls with a written signature, signals by match rule, reconnecting for ever.

No introspection, no proxies. dbus-next is imported here, in bus_writer.py and for the service side in daemon/. When the
bus is lost PID 1 forgets every subscription of ours (its destroy_bus()), so each reconnect asks for name, matches and
Subscribe() again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from dbus_next import BusType, Message, MessageType, NameFlag, RequestNameReply, Variant
from dbus_next.aio import MessageBus

from agent.errors import (
    AccessDenied,
    BusLost,
    CleatError,
    DeadlineExceeded,
    InvalidArgument,
    ScopeFailed,
    UnitExists,
    Unsupported,
)
from agent.systemd.bus_writer import Writer

__all__ = ["Bus", "Signal", "Variant", "decode_path", "encode_path"]

logger = logging.getLogger(__name__)

_CALL_TIMEOUT = 30.0
_RECONNECT_DELAYS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

Signal = Message
SignalHandler = Callable[[Message], None]
MessageHandler = Callable[[Message], Message | bool | None]


def encode_path(name: str) -> str:
    """sd_bus_path_encode(3) for one element: all but letters and digits as _xx; an empty name is `_`."""
    if not name:
        return "_"
    out = []
    for i, byte in enumerate(name.encode()):
        char = chr(byte)
        plain = char.isascii() and char.isalnum() and not (i == 0 and char.isdigit())
        out.append(char if plain else f"_{byte:02x}")
    return "".join(out)


def decode_path(element: str) -> str:
    """The name that encode_path() turned into `element`. Raises InvalidArgument on a malformed one."""
    if element == "_":
        return ""
    raw = bytearray()
    i = 0
    while i < len(element):
        try:
            if element[i] == "_":
                raw.append(int(element[i + 1 : i + 3], 16))
                i += 3
            else:
                raw += element[i].encode("ascii")
                i += 1
        except ValueError as e:
            raise InvalidArgument(f"not an encoded object path element: {element!r}") from e
    return raw.decode(errors="replace")


def _error_of(reply: Message, what: str) -> CleatError:
    name = reply.error_name or ""
    why = str(reply.body[0]) if reply.body else name
    if name in {"org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.ServiceUnknown"}:
        return BusLost(what, why=why)
    if name.endswith((".AccessDenied", ".InteractiveAuthorizationRequired")):
        return AccessDenied(what, why=why)
    if name.endswith((".PropertyReadOnly", ".UnknownMethod", ".NotSupported")):
        return Unsupported(what, why=why, hint="the running systemd may be too old for this")
    return UnitExists(what, why=why) if name.endswith(".UnitExists") else ScopeFailed(what, why=why)


def _address(kind: BusType) -> str:
    """Where the user's bus is if nobody says so (sd_bus_open_user(3)); "" = as the library finds it."""
    folder = os.environ.get("XDG_RUNTIME_DIR", "")
    is_silent = kind is BusType.SESSION and folder and "DBUS_SESSION_BUS_ADDRESS" not in os.environ
    return f"unix:path={folder}/bus" if is_silent else ""


class Peer(NamedTuple):
    name: str
    pid: int
    uid: int


class Bus:
    """One connection to the system bus, or with `user` to the user's."""

    def __init__(self, *, user: bool = False) -> None:
        self._type = BusType.SESSION if user else BusType.SYSTEM
        self._bus: MessageBus | None = None
        self._peer: Peer | None = None
        # Whom an answer is for, by the serial of the question.
        self._calls: dict[int, asyncio.Future[Message]] = {}
        self._matches: dict[str, int] = {}
        self._signal_handlers: dict[str, list[SignalHandler]] = {}
        self._message_handlers: list[MessageHandler] = []
        self._name = ""
        self._closing = False
        self.on_lost: list[Callable[[], None]] = []
        self.on_back: list[Callable[[], Awaitable[None]]] = []

    @property
    def connected(self) -> bool:
        return self._bus is not None and self._bus.connected

    @property
    def unique_name(self) -> str:
        return (self._bus.unique_name or "") if self._bus is not None else ""

    @property
    def connection(self) -> MessageBus:
        """The library's own object, for exporting. Raises BusLost when there is none."""
        if self._bus is None:
            raise BusLost("no connection to the D-Bus broker")
        return self._bus

    async def connect(self) -> None:
        """Connect and set up what was asked for before. Raises BusLost."""
        address = _address(self._type)
        bus = MessageBus(address) if address else MessageBus(bus_type=self._type)
        try:
            async with asyncio.timeout(_CALL_TIMEOUT):
                await bus.connect()
        except (OSError, EOFError, TimeoutError) as e:
            raise BusLost("cannot connect to the D-Bus broker", why=str(e), hint="systemctl status dbus") from e
        bus.add_message_handler(self._dispatch)
        Writer.replace(bus)
        self._bus = bus
        for rule in self._matches:
            await self._bus_call("AddMatch", "s", rule)
        if self._name:
            await self.request_name(self._name)

    async def request_name(self, name: str) -> None:
        """Own a well-known name. Raises CleatError when somebody else has it."""
        self._name = name
        reply = await self.connection.request_name(name, NameFlag.DO_NOT_QUEUE)
        if reply not in {RequestNameReply.PRIMARY_OWNER, RequestNameReply.ALREADY_OWNER}:
            raise CleatError(f"the bus name {name} is taken", hint="another agent runs already: systemctl status cleat")

    async def run(self) -> None:
        """Keep the connection: wait for its end, announce it, reconnect with growing delays, announce that."""
        while self._bus is not None:
            try:
                await self.connection.wait_for_disconnect()
            except Exception as e:  # noqa: BLE001 the library passes on whatever its reader met
                logger.debug("bus connection ended: %s", e)
            # The library leaves that to the garbage collector.
            for end in (self._bus._stream, self._bus._sock):  # noqa: SLF001
                with suppress(OSError, ValueError):
                    end.close()
            self._bus = None
            unanswered, self._calls = self._calls, {}
            for call in unanswered.values():
                call.cancel()
            if self._is_closing():
                return
            for lost in self.on_lost:
                lost()
            await self._reconnect()
            await self._resume()

    async def _resume(self) -> None:
        """Set up again what PID 1 forgot; it may not be there itself yet. Ends when the connection does."""
        for delay in itertools.chain(_RECONNECT_DELAYS, itertools.repeat(_RECONNECT_DELAYS[-1])):
            try:
                for back in self.on_back:
                    await back()
            except CleatError as e:
                logger.debug("after reconnecting: %s", e)
            else:
                return
            if not self.connected:
                return
            await asyncio.sleep(delay)

    async def _reconnect(self) -> None:
        attempt = 0
        while True:
            await asyncio.sleep(_RECONNECT_DELAYS[min(attempt, len(_RECONNECT_DELAYS) - 1)])
            attempt += 1
            try:
                await self.connect()
            except CleatError as e:
                logger.debug("reconnect %d: %s", attempt, e)
            else:
                return

    def _is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True
        if self._bus is not None:
            self._bus.disconnect()

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Any] = (),
        *,
        timeout: float = _CALL_TIMEOUT,  # noqa: ASYNC109 mapped to our own error
    ) -> list[Any]:
        """Call a method and return the reply's body.

        Raises BusLost, AccessDenied, Unsupported, ScopeFailed, DeadlineExceeded.
        """
        bus = self.connection
        message = Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
        )
        try:
            async with asyncio.timeout(timeout):
                reply = await self._answer(bus, message)
        except TimeoutError as e:
            raise DeadlineExceeded(f"{destination} did not answer {member} within {timeout:g} s") from e
        if reply is None:
            raise BusLost(f"the D-Bus broker went away during {member}")
        if reply.message_type is MessageType.ERROR:
            raise _error_of(reply, f"{member} failed")
        return list(reply.body)

    async def _answer(self, bus: MessageBus, message: Message) -> Message | None:
        """The reply; None when the connection ended before there was one."""
        message.serial = bus.next_serial()
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        calls = self._calls  # of this connection: the next one counts anew
        calls[message.serial] = answer
        try:
            if bus is not self._bus or not bus.connected:
                return None
            bus.send(message)
            await asyncio.wait((answer,))
            return None if answer.cancelled() else answer.result()
        finally:
            calls.pop(message.serial, None)

    async def _bus_call(self, member: str, signature: str, *body: Any) -> list[Any]:
        daemon = "org.freedesktop.DBus"
        return await self.call(daemon, "/org/freedesktop/DBus", daemon, member, signature, body)

    async def peer(self, sender: str) -> Peer:
        """Process and user of a client, as the broker saw it connect (unique names are never used again)."""
        if self._peer is None or self._peer.name != sender:
            (found,) = await self._bus_call("GetConnectionCredentials", "s", sender)
            self._peer = Peer(sender, int(found["ProcessID"].value), int(found["UnixUserID"].value))
        return self._peer

    async def peer_pid(self, sender: str) -> int:
        return (await self.peer(sender)).pid

    async def peer_uid(self, sender: str) -> int:
        return (await self.peer(sender)).uid

    async def add_match(self, rule: str) -> None:
        """Ask for signals; counted, and renewed on reconnect."""
        count = self._matches.get(rule, 0)
        self._matches[rule] = count + 1
        if count == 0 and self.connected:
            await self._bus_call("AddMatch", "s", rule)

    async def remove_match(self, rule: str) -> None:
        count = self._matches.get(rule, 0)
        if count > 1:
            self._matches[rule] = count - 1
        elif self._matches.pop(rule, None) is not None and self.connected:
            await self._bus_call("RemoveMatch", "s", rule)

    def on_signal(self, member: str, handler: SignalHandler) -> None:
        """Call `handler` for every signal of this name that reaches us."""
        self._signal_handlers.setdefault(member, []).append(handler)

    def on_method_call(self, handler: MessageHandler) -> None:
        """Offer every incoming method call to `handler`; it returns a reply, True (it will) or None (not its own)."""
        self._message_handlers.append(handler)

    def send(self, message: Message) -> None:
        """Send a reply or signal; dropped when there is no connection."""
        if self._bus is not None and self._bus.connected:
            self._bus.send(message)

    def _dispatch(self, message: Message) -> Message | bool | None:
        if message.message_type is MessageType.SIGNAL:
            for handler in self._signal_handlers.get(message.member or "", ()):
                handler(message)
            return None
        if message.message_type is MessageType.METHOD_CALL:
            for answer in self._message_handlers:
                reply = answer(message)
                if reply is not None:
                    return reply
            return None
        call = self._calls.get(message.reply_serial)
        if call is None or call.done():
            return None
        call.set_result(message)
        return True
