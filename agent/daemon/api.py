# SPDX-License-Identifier: Apache-2.0
"""org.cleat.Agent1 on the bus: dispatch of method calls by the tables of interface.py, properties, signals."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dbus_next import Message, MessageFlag, MessageType, Variant

from agent.background import Background
from agent.container.supervisor import Supervisor
from agent.daemon import bus_object
from agent.daemon.agent import Agent
from agent.daemon.bus_object import Access, Method
from agent.daemon.interface import (
    CONTAINER,
    CONTAINERS,
    MANAGER,
    MANAGER_PROPERTIES,
    NAME,
    PATH,
    PROPERTIES,
    container_methods,
    manager_methods,
)
from agent.daemon.operations import Operations
from agent.daemon.peers import Peers
from agent.daemon.polkit import Polkit
from agent.errors import CleatError, InvalidArgument
from agent.status import Status
from agent.systemd.bus import Bus, decode_path, encode_path

logger = logging.getLogger(__name__)

_FAILED = NAME + ".Error.Internal"
_ERROR = "org.freedesktop.DBus.Error."
_PENDING_MAX = 1024
"""Calls of one client that may wait for their answer."""


def named(method: Method, body: Sequence[Any]) -> str:
    """The container that a call is about, "" for none."""
    return str(body[0]) if method.inputs[:1] == (("name", "s"),) else ""


def property_values(status: Status) -> dict[str, Variant]:
    return {p.name: Variant(p.signature, p.get(status)) for p in PROPERTIES}


class Api:
    """Answers method calls, and sends signals to those that asked for them with Subscribe()."""

    def __init__(self, bus: Bus, agent: Agent, operations: Operations, polkit: Polkit) -> None:
        self._bus = bus
        self._agent = agent
        self._operations = operations
        self._polkit = polkit
        self._manager = {m.name: m for m in manager_methods(operations)}
        self._container = {m.name: m for m in container_methods(operations)}
        self._peers = Peers(bus)
        self._pending: dict[str, set[asyncio.Task[None]]] = {}
        self._tied: dict[str, set[asyncio.Task[None]]] = {}
        self._background = Background()
        self._known: dict[str, dict[str, Variant]] = {}
        self._changed: set[str] = set()
        bus.on_method_call(self._incoming)
        agent.on_change.append(self._note_change)
        agent.on_removed.append(self._note_removal)
        bus.on_back.append(self._bus_back)

    async def _bus_back(self) -> None:
        """All clients of the old connection are gone."""
        self._operations.subscribers.clear()
        for task in [task for tasks in self._tied.values() for task in tasks]:
            task.cancel()
        await self._peers.forget_all()

    # Calls

    def _incoming(self, message: Message) -> Message | bool | None:
        path = message.path or ""
        if path != PATH and not path.startswith(PATH + "/") and not PATH.startswith(path.rstrip("/") + "/"):
            return None
        sender = message.sender or ""
        pending = self._pending.setdefault(sender, set())
        if len(pending) >= _PENDING_MAX:
            return Message.new_error(message, _ERROR + "LimitsExceeded", "too many calls that wait for their answer")
        task = asyncio.create_task(self._answer(message))
        pending.add(task)
        task.add_done_callback(lambda task: self._answered(sender, task))
        return True

    def _answered(self, sender: str, task: asyncio.Task[None]) -> None:
        for table in (self._pending, self._tied):
            found = table.get(sender, set())
            found.discard(task)
            if not found:
                table.pop(sender, None)
        if sender not in self._tied and sender not in self._operations.subscribers and self._peers.watches(sender):
            self._background.spawn(self._peers.unwatch(sender))

    async def _answer(self, message: Message) -> None:
        try:
            reply = await self._reply(message)
        except CleatError as e:
            reply = Message.new_error(message, e.dbus_name(), str(e))
        except Exception:
            logger.exception("%s.%s", message.interface, message.member)
            reply = Message.new_error(message, _FAILED, "the agent met a fault of its own: journalctl -u cleat")
        if not message.flags & MessageFlag.NO_REPLY_EXPECTED:
            self._bus.send(reply)

    async def _reply(self, message: Message) -> Message:
        interface, member, path = message.interface or "", message.member or "", message.path or ""
        if interface == bus_object.INTROSPECTABLE and member == "Introspect":
            return Message.new_method_return(message, "s", [self._introspect(path)])
        if interface == bus_object.PEER and member == "Ping":
            return Message.new_method_return(message)
        if interface == bus_object.PEER and member == "GetMachineId":
            return Message.new_method_return(message, "s", [_machine_id()])
        if interface == bus_object.OBJECT_MANAGER and member == "GetManagedObjects" and path == PATH:
            return Message.new_method_return(message, "a{oa{sa{sv}}}", [self._managed_objects()])
        if interface == bus_object.PROPERTIES:
            return self._property_call(message)
        if path == PATH and interface in {MANAGER, ""} and member in self._manager:
            return await self._call(message, self._manager[member], [])
        if path.startswith(CONTAINERS) and interface in {CONTAINER, ""} and member in self._container:
            name = decode_path(path.removeprefix(CONTAINERS))
            extra = [False] if member == "Inspect" else []
            return await self._call(message, self._container[member], [name], extra)
        return Message.new_error(message, _ERROR + "UnknownMethod", f"no method {interface}.{member} at {path}")

    async def _call(
        self, message: Message, method: Method, leading: list[Any], trailing: list[Any] | None = None
    ) -> Message:
        if message.signature != method.signature:
            raise InvalidArgument(
                f"{method.name} takes ({method.signature}) and was given ({message.signature})",
                hint="busctl introspect",
            )
        if method.access is not Access.READ:
            name = str(leading[0]) if leading else named(method, message.body)
            await self._polkit.require(message, method.access.value, name)
        if method.name in {"Wait", "Subscribe", "ExecWait"}:
            await self._tie(message.sender or "", method)
        result = await method.call(message.sender, *leading, *message.body, *(trailing or ()))
        body = [] if not method.outputs else list(result) if len(method.outputs) > 1 else [result]
        return Message.new_method_return(message, method.reply_signature, body)

    async def _tie(self, sender: str, method: Method) -> None:
        """What is done for a client that only listens ends when it leaves the bus."""
        task = asyncio.current_task()
        if method.name != "Subscribe" and task is not None:
            self._tied.setdefault(sender, set()).add(task)
        await self._peers.watch(sender, lambda: self._left(sender))
        if method.name == "Subscribe" and not self._operations.subscribers:
            self._known = {n: property_values(s.status()) for n, s in self._agent.supervisors.items()}

    def _left(self, sender: str) -> None:
        self._operations.subscribers.discard(sender)
        for task in self._tied.pop(sender, ()):
            task.cancel()
        self._background.spawn(self._peers.unwatch(sender))

    def _property_call(self, message: Message) -> Message:
        path, member = message.path or "", message.member
        if path == PATH:
            interface, values = MANAGER, {p.name: Variant(p.signature, p.get(None)) for p in MANAGER_PROPERTIES}
        elif path.startswith(CONTAINERS):
            interface, values = CONTAINER, property_values(self._supervisor(path).status())
        else:
            interface, values = "", {}
        if member == "GetAll" and message.signature == "s":
            return Message.new_method_return(message, "a{sv}", [values if message.body[0] in {interface, ""} else {}])
        if member == "Get" and message.signature == "ss":
            if message.body[0] in {interface, ""} and message.body[1] in values:
                return Message.new_method_return(message, "v", [values[message.body[1]]])
            return Message.new_error(message, _ERROR + "UnknownProperty", f"no property {'.'.join(message.body)}")
        if member == "Set":
            return Message.new_error(message, _ERROR + "PropertyReadOnly", "all properties are read-only")
        return Message.new_error(message, _ERROR + "UnknownMethod", f"no method {member}({message.signature})")

    def _supervisor(self, path: str) -> Supervisor:
        return self._agent.present(decode_path(path.removeprefix(CONTAINERS)))

    def _introspect(self, path: str) -> str:
        if path == PATH:
            manager = bus_object.interface_xml(MANAGER, tuple(self._manager.values()), MANAGER_PROPERTIES)
            return bus_object.node_xml([manager], ["container"], is_manager=True)
        if path == CONTAINERS.rstrip("/"):
            return bus_object.node_xml(children=[encode_path(name) for name in sorted(self._agent.supervisors)])
        if path.startswith(CONTAINERS):
            self._supervisor(path)
            return bus_object.node_xml(
                [bus_object.interface_xml(CONTAINER, tuple(self._container.values()), PROPERTIES)]
            )
        inner = PATH.removeprefix(path.rstrip("/") + "/").split("/")[0]
        return bus_object.node_xml(children=[inner])

    def _managed_objects(self) -> dict[str, Any]:
        return {
            CONTAINERS + encode_path(name): {CONTAINER: property_values(supervisor.status())}
            for name, supervisor in self._agent.supervisors.items()
        }

    # Signals

    def _note_change(self, supervisor: Supervisor) -> None:
        """Changes of one turn of the loop are told together, and only where somebody listens."""
        if not self._operations.subscribers:
            self._known.clear()
            return
        if not self._changed:
            asyncio.get_running_loop().call_soon(self._tell_changes)
        self._changed.add(supervisor.name)

    def _tell_changes(self) -> None:
        for name in sorted(self._changed & self._agent.supervisors.keys()):
            values = property_values(self._agent.supervisors[name].status())
            before = self._known.get(name)
            self._known[name] = values
            path = CONTAINERS + encode_path(name)
            if before is None:
                self._signal(
                    PATH,
                    bus_object.OBJECT_MANAGER,
                    "InterfacesAdded",
                    "oa{sa{sv}}",
                    path,
                    {CONTAINER: values},
                )
            changed = {
                key: value for key, value in values.items() if before is None or before[key].value != value.value
            }
            if changed:
                self._signal(path, bus_object.PROPERTIES, "PropertiesChanged", "sa{sv}as", CONTAINER, changed, [])
        self._changed.clear()

    def _note_removal(self, name: str) -> None:
        self._known.pop(name, None)
        if self._operations.subscribers:
            path = CONTAINERS + encode_path(name)
            self._signal(PATH, bus_object.OBJECT_MANAGER, "InterfacesRemoved", "oas", path, [CONTAINER])

    def _signal(self, path: str, interface: str, member: str, signature: str, *body: Any) -> None:
        self._bus.send(
            Message(
                message_type=MessageType.SIGNAL,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=list(body),
            )
        )


def _machine_id() -> str:
    return Path("/etc/machine-id").read_text().strip()
