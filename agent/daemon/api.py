# SPDX-License-Identifier: Apache-2.0
"""org.cleat.Agent1 on the bus: what can be asked of the agent, row by row, each a line into typed code."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
from dbus_next import Message, MessageType, Variant

from agent.container.supervisor import Supervisor
from agent.daemon import bus_object
from agent.daemon.agent import Agent
from agent.daemon.bus_object import Access, Method, Property
from agent.daemon.operations import Operations
from agent.daemon.polkit import Polkit
from agent.errors import CleatError, InvalidArgument
from agent.status import Status
from agent.systemd.bus import Bus, decode_path, encode_path

logger = logging.getLogger(__name__)

NAME = "org.cleat.Agent1"
PATH = "/org/cleat/Agent1"
CONTAINERS = PATH + "/container/"
MANAGER = NAME + ".Manager"
CONTAINER = NAME + ".Container"
_FAILED = NAME + ".Error.Internal"

_NAME = (("name", "s"),)
_JSON = (("json", "s"),)
_TIMED = (("name", "s"), ("timeout_usec", "t"))
_OPTIONS = (("name", "s"), ("options_json", "s"))


def manager_methods(do: Operations) -> tuple[Method, ...]:
    """The methods of the manager object."""
    read, inspect, manage, run, reload_ = (
        Access.READ,
        Access.INSPECT,
        Access.MANAGE,
        Access.EXEC,
        Access.RELOAD,
    )
    return (
        Method(
            "GetStatus",
            (("names", "as"),),
            _JSON,
            read,
            "Status objects of the named, or of all containers.",
            do.status,
        ),
        Method(
            "Start",
            _NAME,
            (),
            manage,
            "Start a container and what it needs; returns when it is ready.",
            do.start,
        ),
        Method("Stop", _TIMED, (), manage, "Stop a container; UINT64_MAX stands for its own timeout.", do.stop),
        Method("Restart", _NAME, (), manage, "Stop, then start.", do.restart),
        Method(
            "Reload",
            _NAME,
            (),
            manage,
            "Ask the payload to reload: reload_command or reload_signal.",
            do.reload,
        ),
        Method("Pause", _NAME, (), manage, "Freeze all processes of a container.", do.pause),
        Method("Resume", _NAME, (), manage, "Let a paused container go on.", do.resume),
        Method(
            "Kill",
            (("name", "s"), ("signal", "i"), ("all", "b")),
            (),
            manage,
            "Send a signal to the first process, or to all.",
            do.kill,
        ),
        Method("Wait", _NAME, (("exit_code", "i"),), read, "Wait for the end; returns the exit code.", do.wait),
        Method(
            "Inspect",
            (("name", "s"), ("spec", "b")),
            _JSON,
            inspect,
            "All that is known of a container, with its runtime spec on request.",
            do.inspect,
        ),
        Method(
            "Plan",
            (),
            _JSON,
            inspect,
            "What ReloadDefinitions would do, and what is wrong with the definitions.",
            do.plan,
        ),
        Method(
            "ReloadDefinitions",
            (),
            _JSON,
            reload_,
            "Read the definitions and carry out the plan.",
            do.reload_definitions,
        ),
        Method(
            "Info",
            (),
            _JSON,
            read,
            "Versions and features of agent, conmon, runtimes, systemd and kernel.",
            do.info,
        ),
        Method(
            "Stats",
            (("names", "as"),),
            _JSON,
            read,
            "Figures of processor, memory, tasks and I/O.",
            do.stats,
        ),
        Method("Top", _NAME, _JSON, inspect, "The processes inside a container.", do.top),
        Method(
            "Exec",
            _OPTIONS,
            (("session", "s"), ("attach_socket", "s"), ("control", "s")),
            run,
            "Prepare a command in a container; it waits for ExecStart.",
            do.exec_create,
        ),
        Method("ExecStart", (("session", "s"),), (), run, "Let the command of a session begin.", do.exec_start),
        Method(
            "ExecWait",
            (("session", "s"),),
            (("exit_code", "i"),),
            run,
            "Wait for a session's end and remove it.",
            do.exec_wait,
        ),
        Method(
            "ExecKill",
            (("session", "s"), ("signal", "i")),
            (),
            run,
            "Signal the command of a session.",
            do.exec_kill,
        ),
        Method(
            "Attach",
            _NAME,
            (("attach_socket", "s"), ("control", "s"), ("terminal", "b")),
            run,
            "Where conmon's attach socket and control fifo are.",
            do.attach,
        ),
        Method(
            "Checkpoint",
            _OPTIONS,
            _JSON,
            manage,
            "Store a running container's state with criu.",
            do.checkpoint,
        ),
        Method("Restore", _OPTIONS, _JSON, manage, "Let a checkpointed container go on.", do.restore),
        Method("Pull", _NAME, _JSON, manage, "Fetch the image of a definition.", do.pull),
        Method("Images", (), _JSON, read, "The images in the store.", do.images),
        Method("Prune", (("dry_run", "b"),), _JSON, manage, "Remove what no definition needs.", do.prune),
        Method(
            "StartHandle",
            _NAME,
            (),
            manage,
            "For cleat@NAME.service: start, and speak to systemd for it.",
            do.start_handle,
        ),
        Method("StopHandle", _NAME, (), manage, "For cleat@NAME.service: stop.", do.stop_handle),
        Method("ReloadHandle", _NAME, (), manage, "For cleat@NAME.service: reload.", do.reload_handle),
        Method("Subscribe", (), (), read, "Ask for signals; until the caller leaves the bus.", do.subscribe),
        Method("Unsubscribe", (), (), read, "Ask for no more signals.", do.unsubscribe),
    )


def _prop(name: str, signature: str, text: str, field: str = "") -> Property:
    attribute = field or "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")
    return Property(name, signature, text, lambda status: getattr(status, attribute))


PROPERTIES: tuple[Property, ...] = (
    _prop("Name", "s", "The container's name."),
    _prop("Id", "s", "The 64 hexadecimal digits of the run of the moment, or of the last one."),
    _prop("State", "s", "inactive, pulling, starting, running, paused, stopping, backoff, exited or failed."),
    _prop("Ready", "b", "True from readiness to the end."),
    _prop("Pid", "u", "The first process, 0 when there is none."),
    _prop("ConmonPid", "u", "conmon's pid, 0 when there is none."),
    Property(
        "ExitCode",
        "i",
        "0-255, 128+n for signal n; -1 before the first end.",
        lambda s: -1 if s.exit_code is None else s.exit_code,
    ),
    _prop("OomKilled", "b", "Whether the kernel ended the last run for lack of memory."),
    Property("StartedAt", "t", "Microseconds since 1970, 0 = never.", lambda s: int(s.started_at * 1e6)),
    Property("FinishedAt", "t", "Microseconds since 1970, 0 = never.", lambda s: int(s.finished_at * 1e6)),
    _prop("Restarts", "u", "How often the agent restarted it by itself."),
    _prop("StatusText", "s", "The payload's own STATUS=."),
    _prop("Health", "s", "starting, healthy, unhealthy or empty."),
    _prop("Unit", "s", "The scope."),
    _prop("Definition", "s", "The file it is defined in."),
    _prop("Image", "s", "The image it is made from, if any."),
    _prop("Error", "s", "Why it failed, if it did."),
)


def container_methods(do: Operations) -> tuple[Method, ...]:
    """The methods of a container object; the name comes from the path."""
    manage = Access.MANAGE
    return (
        Method("Start", (), (), manage, "Start it; returns when it is ready.", do.start),
        Method(
            "Stop",
            (("timeout_usec", "t"),),
            (),
            manage,
            "Stop it; UINT64_MAX stands for its own timeout.",
            do.stop,
        ),
        Method("Restart", (), (), manage, "Stop, then start.", do.restart),
        Method("Reload", (), (), manage, "Ask the payload to reload.", do.reload),
        Method("Pause", (), (), manage, "Freeze it.", do.pause),
        Method("Resume", (), (), manage, "Let it go on.", do.resume),
        Method("Kill", (("signal", "i"), ("all", "b")), (), manage, "Send a signal.", do.kill),
        Method("Wait", (), (("exit_code", "i"),), Access.READ, "Wait for the end.", do.wait),
        Method("Inspect", (), _JSON, Access.INSPECT, "All that is known of it.", do.inspect),
    )


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
        self._tasks: set[asyncio.Task[None]] = set()
        self._known: dict[str, dict[str, Variant]] = {}
        self._changed: set[str] = set()
        bus.on_method_call(self._incoming)
        agent.on_change.append(self._note_change)
        agent.on_removed.append(self._note_removal)

    # Calls

    def _incoming(self, message: Message) -> Message | bool | None:
        path = message.path or ""
        if path != PATH and not path.startswith(PATH + "/") and not PATH.startswith(path.rstrip("/") + "/"):
            return None
        task = asyncio.create_task(self._answer(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _answer(self, message: Message) -> None:
        try:
            reply = await self._reply(message)
        except CleatError as e:
            reply = Message.new_error(message, e.dbus_name(), str(e))
        except Exception:
            logger.exception("%s.%s", message.interface, message.member)
            reply = Message.new_error(message, _FAILED, "the agent met a fault of its own: journalctl -u cleat")
        if not message.flags & 1:
            self._bus.send(reply)

    async def _reply(self, message: Message) -> Message:
        interface, member, path = message.interface or "", message.member or "", message.path or ""
        if interface == bus_object.INTROSPECTABLE and member == "Introspect":
            return Message.new_method_return(message, "s", [self._introspect(path)])
        if interface == bus_object.PEER and member == "Ping":
            return Message.new_method_return(message)
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
        return Message.new_error(
            message, "org.freedesktop.DBus.Error.UnknownMethod", f"no method {interface}.{member} at {path}"
        )

    async def _call(
        self, message: Message, method: Method, leading: list[Any], trailing: list[Any] | None = None
    ) -> Message:
        if message.signature != method.signature:
            raise InvalidArgument(
                f"{method.name} takes ({method.signature}) and was given ({message.signature})",
                hint="busctl introspect",
            )
        if method.access is not Access.READ:
            await self._polkit.require(message, method.access.value)
        result = await method.call(message.sender, *leading, *message.body, *(trailing or ()))
        body = [] if not method.outputs else list(result) if len(method.outputs) > 1 else [result]
        return Message.new_method_return(message, method.reply_signature, body)

    def _property_call(self, message: Message) -> Message:
        path = message.path or ""
        if not path.startswith(CONTAINERS):
            if message.member == "GetAll":
                return Message.new_method_return(message, "a{sv}", [{}])
            return Message.new_error(
                message, "org.freedesktop.DBus.Error.UnknownProperty", "there are no properties here"
            )
        values = property_values(self._supervisor(path).status())
        if message.member == "GetAll" and message.signature == "s":
            return Message.new_method_return(message, "a{sv}", [values if message.body[0] in {CONTAINER, ""} else {}])
        if message.member == "Get" and message.signature == "ss" and message.body[1] in values:
            return Message.new_method_return(message, "v", [values[message.body[1]]])
        if message.member == "Set":
            return Message.new_error(
                message, "org.freedesktop.DBus.Error.PropertyReadOnly", "all properties are read-only"
            )
        return Message.new_error(message, "org.freedesktop.DBus.Error.UnknownProperty", "no such property")

    def _supervisor(self, path: str) -> Supervisor:
        return self._agent.supervisor(decode_path(path.removeprefix(CONTAINERS)))

    def _introspect(self, path: str) -> str:
        if path == PATH:
            manager = bus_object.interface_xml(MANAGER, tuple(self._manager.values()))
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


def encode_statuses(statuses: list[Status]) -> str:
    return msgspec.json.encode(statuses).decode()
