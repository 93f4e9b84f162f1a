# SPDX-License-Identifier: Apache-2.0
"""org.cleat.Agent1 by busctl alone: methods, properties, signals, errors, and clients that leave."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import pytest

from tests.host.test_handles import define

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.hosts import Host, Result

NAME, PATH = "org.cleat.Agent1", "/org/cleat/Agent1"
MANAGER, CONTAINER = f"{NAME}.Manager", f"{NAME}.Container"
WEB = f"{PATH}/container/web_2d1"
FOREVER = "18446744073709551615"


def call(host: Host, member: str, *args: str, path: str = PATH, interface: str = MANAGER, check: bool = True) -> Result:
    return host.run(["busctl", "--json=short", "call", NAME, path, interface, member, *args], check=check)


def value(result: Result) -> Any:
    return json.loads(result.stdout)["data"]


def text(result: Result) -> Any:
    return json.loads(value(result)[0])


def prop(host: Host, name: str, path: str = WEB, interface: str = CONTAINER) -> Any:
    return value(host.run(["busctl", "--json=short", "get-property", NAME, path, interface, name]))


@pytest.fixture
def web(clean: Host) -> Host:
    define(
        clean,
        "web-1",
        service='reload_signal = "SIGHUP"\nrestart = "no"',
        script="trap : HUP; trap 'exit 4' TERM; while :; do sleep 1000 & wait; done",
    )
    clean.reload()
    return clean


def test_manager_methods(web: Host) -> None:
    call(web, "Start", "s", "web-1")
    assert text(call(web, "GetStatus", "as", "1", "web-1"))[0]["state"] == "running"
    call(web, "Pause", "s", "web-1")
    assert text(call(web, "GetStatus", "as", "0"))[0]["state"] == "paused"
    call(web, "Resume", "s", "web-1")
    call(web, "Reload", "s", "web-1")
    assert text(call(web, "Inspect", "sb", "web-1", "true"))["ociVersion"]
    assert text(call(web, "Stats", "as", "1", "web-1"))[0]["pids_current"] > 0
    assert text(call(web, "Top", "s", "web-1"))[0]["pid"] == prop(web, "Pid")
    assert text(call(web, "Info"))["conmon"]["version"]
    assert text(call(web, "Plan")) == {"actions": [], "diagnostics": []}
    assert text(call(web, "ReloadDefinitions"))["actions"] == []
    assert isinstance(text(call(web, "Images")), list)
    assert text(call(web, "Prune", "b", "true"))["dry_run"] is True
    assert value(call(web, "Attach", "s", "web-1"))[2] is False
    call(web, "Restart", "s", "web-1")
    call(web, "Stop", "st", "web-1", FOREVER)
    assert value(call(web, "Wait", "s", "web-1")) == [4]
    call(web, "Start", "s", "web-1")
    call(web, "Kill", "sib", "web-1", "9", "true")
    web.wait_event("web-1", "exited")
    call(web, "Stop", "st", "web-1", "0")


def test_container_objects(web: Host) -> None:
    before = web.run(["busctl", "tree", "--list", NAME]).stdout.split()
    assert before[-3:] == [PATH, f"{PATH}/container", WEB]
    objects = value(call(web, "GetManagedObjects", interface="org.freedesktop.DBus.ObjectManager"))[0]
    assert objects[WEB][CONTAINER]["State"]["data"] == "inactive"
    assert prop(web, "ExitCode") == -1
    for method in ("Start", "Pause", "Resume", "Reload", "Restart"):
        call(web, method, path=WEB, interface=CONTAINER)
    assert prop(web, "State") == "running"
    assert prop(web, "Unit") == "cleat-web-1.scope"
    call(web, "Kill", "ib", "15", "false", path=WEB, interface=CONTAINER)
    assert value(call(web, "Wait", path=WEB, interface=CONTAINER)) == [4]
    call(web, "Stop", "t", FOREVER, path=WEB, interface=CONTAINER)
    assert text(call(web, "Inspect", path=WEB, interface=CONTAINER))["exit_code"] == 4
    everything = value(call(web, "GetAll", "s", CONTAINER, path=WEB, interface="org.freedesktop.DBus.Properties"))[0]
    assert {"Name", "ConmonPid", "FinishedAt", "Error"} <= everything.keys()
    assert prop(web, "Version", PATH, MANAGER)


@pytest.mark.parametrize("path", ["/", "/org", PATH, f"{PATH}/container", WEB])
def test_introspection(web: Host, path: str) -> None:
    answer = call(web, "Introspect", path=path, interface="org.freedesktop.DBus.Introspectable")
    root = ET.fromstring(value(answer)[0])
    assert root.tag == "node"
    assert (path in {PATH, WEB}) == bool(root.findall("interface"))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("Start", "s", "nosuch"), "nosuch: no such container"),
        (("Start", "i", "4"), r"Start takes (s) and was given (i)"),
        (("Kill", "sib", "web-1", "9", "false"), "web-1: cannot signal it: it is inactive"),
        (("Kill", "sib", "web-1", "999", "false"), "no signal has the number 999"),
        (("ExecStart", "s", "nosuch"), "nosuch"),
        (("Nope",), "no method"),
    ],
)
def test_errors(web: Host, arguments: tuple[str, ...], why: str) -> None:
    failed = call(web, *arguments, check=False)
    assert failed.returncode == 1
    assert why in failed.stderr


@contextmanager
def monitored(host: Host, *options: str) -> Iterator[IO[bytes]]:
    """What busctl monitor says of the agent, a line of JSON for each message; from here on it sees them all."""
    mark = host.cursor()
    with host.start(["busctl", "monitor", "--json=short", *options, NAME]) as monitor:
        host.wait_journal("_COMM=dbus-daemon", since=mark, where=lambda entry: "became a monitor" in entry["MESSAGE"])
        assert monitor.stdout is not None
        yield monitor.stdout


def test_error_names(web: Host) -> None:
    with monitored(web, "--match=type=error") as monitor:
        call(web, "Start", "s", "nosuch", check=False)
        web.run(["busctl", "set-property", NAME, WEB, CONTAINER, "State", "s", "x"], check=False)
        web.run(["busctl", "get-property", NAME, WEB, CONTAINER, "Nope"], check=False)
        names: list[str] = []
        while len(names) < 3:
            entry = json.loads(monitor.readline())
            names += [entry["error_name"]] if entry["type"] == "error" else []
    assert names == [
        f"{NAME}.Error.NoSuchContainer",
        "org.freedesktop.DBus.Error.PropertyReadOnly",
        "org.freedesktop.DBus.Error.UnknownProperty",
    ]


LISTENER = """
import asyncio, json, sys
from dbus_next import BusType, Message
from dbus_next.aio import MessageBus

async def main():
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    def show(message):
        if message.member in {"PropertiesChanged", "InterfacesAdded", "InterfacesRemoved"}:
            body = message.body[1] if message.member == "PropertiesChanged" else {}
            print(json.dumps([message.member, {key: item.value for key, item in body.items()}]), flush=True)
    bus.add_message_handler(show)
    daemon = "org.freedesktop.DBus"
    rule = "type='signal',sender='org.cleat.Agent1'"
    await bus.call(Message(destination=daemon, path="/org/freedesktop/DBus", interface=daemon, member="AddMatch",
                           signature="s", body=[rule]))
    await bus.call(Message(destination="org.cleat.Agent1", path="/org/cleat/Agent1",
                           interface="org.cleat.Agent1.Manager", member="Subscribe"))
    print("[]", flush=True)
    await bus.wait_for_disconnect()

asyncio.run(main())
"""


def test_signals_for_those_who_subscribed(web: Host) -> None:
    with web.start(["python3", "-c", LISTENER]) as listener:
        assert listener.stdout is not None
        assert json.loads(listener.stdout.readline()) == []
        call(web, "Start", "s", "web-1")
        states: list[str] = []
        member = ""
        while states[-1:] != ["running"]:
            member, changed = json.loads(listener.stdout.readline())
            assert member == "PropertiesChanged"
            states += [changed["State"]] if "State" in changed else []
        call(web, "Stop", "st", "web-1", "0")
        web.remove_definition("web-1")
        web.reload()
        while member != "InterfacesRemoved":
            member, _ = json.loads(listener.stdout.readline())
        define(web, "fresh")
        web.reload()
        assert json.loads(listener.stdout.readline())[0] == "InterfacesAdded"


def test_who_leaves_is_forgotten(web: Host) -> None:
    """Nobody subscribed: no signal is sent any more, not even for a monitor to see."""
    with web.start(["python3", "-c", LISTENER]) as listener:
        assert listener.stdout is not None
        listener.stdout.readline()
    call(web, "Start", "s", "web-1")
    with monitored(web) as monitor:
        call(web, "Stop", "st", "web-1", "0")
        seen: list[str] = []
        while (entry := json.loads(monitor.readline())).get("type") != "method_return" or not seen:
            seen.append(entry.get("member"))
    assert "PropertiesChanged" not in seen


def test_the_bus_comes_back(web: Host) -> None:
    """A broker that is restarted: name back, stops heard, handles and starts work."""
    call(web, "Start", "s", "web-1")
    mark = web.cursor()
    web.run(["systemctl", "restart", "dbus"], timeout=60)
    web.wait_journal("CLEAT_EVENT=bus-back", since=mark)
    assert text(call(web, "GetStatus", "as", "1", "web-1"))[0]["state"] == "running"
    mark = web.cursor()
    web.run(["systemctl", "stop", "cleat-web-1.scope"])
    web.wait_event("web-1", "stopped", since=mark)
    web.run(["systemctl", "start", "cleat@web-1"])
    web.run(["systemctl", "stop", "cleat@web-1"])
    assert prop(web, "State") == "inactive"
