# SPDX-License-Identifier: Apache-2.0
"""The bus client, with a bus of its own where one is needed, and what D-Bus errors mean to people."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from agent import errors
from agent.cli import client
from agent.errors import AccessDenied, AgentUnreachable, CleatError, DeadlineExceeded, InvalidArgument, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(name="bus_address")
def _bus_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real, private message bus that nobody owns a name on."""
    if not shutil.which("dbus-daemon"):
        pytest.skip("dbus-daemon is not installed")
    command = ["dbus-daemon", "--session", "--nofork", "--print-address", f"--address=unix:path={tmp_path}/bus"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as daemon:
        assert daemon.stdout is not None
        address = daemon.stdout.readline().strip()
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
        yield address
        daemon.terminate()


def test_nobody_on_the_bus_is_an_agent_that_does_not_run(bus_address: str) -> None:
    with pytest.raises(AgentUnreachable, match=r"the agent is not running \(systemctl start cleat") as caught:
        client.ask("GetStatus", "as", ["web"], user=False)
    assert caught.value.exit_code == 1


def test_answers_come_with_their_serials(bus_address: str) -> None:
    with client.Bus() as bus:
        sent = {bus.send("Start", "s", f"c{number}") for number in range(100)}
        got = dict(bus.receive() for _ in range(100))
    assert got.keys() == sent
    assert {type(outcome) for outcome in got.values()} == {AgentUnreachable}


def test_what_a_call_cannot_carry_is_a_usage_error(bus_address: str) -> None:
    with pytest.raises(InvalidArgument, match="not valid UTF-8"):
        client.ask("GetStatus", "as", ["\udcff"], user=False)


def test_the_user_managers_bus_is_found(bus_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DBUS_SYSTEM_BUS_ADDRESS")
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", bus_address)
    with pytest.raises(AgentUnreachable, match="systemctl --user start cleat"):
        client.tell("Info", user=True)


def test_no_bus_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    with pytest.raises(AgentUnreachable, match=r"cannot connect to the bus at .*/none: No such file"):
        client.Bus()


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DBUS_SYSTEM_BUS_ADDRESS", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert client.address(user=False) == "unix:path=/run/dbus/system_bus_socket"
    with pytest.raises(AgentUnreachable, match="XDG_RUNTIME_DIR"):
        client.address(user=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert client.address(user=True) == "unix:path=/run/user/1000/bus"


@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("unix:path=/run/dbus/system_bus_socket", ["/run/dbus/system_bus_socket"]),
        ("unix:path=/a%20b,guid=01", ["/a b"]),
        ("tcp:host=h,port=1;unix:abstract=/tmp/x;unix:guid=2,path=/y", ["\0/tmp/x", "/y"]),
        ("", []),
    ],
)
def test_sockets_of_an_address(address: str, names: list[str]) -> None:
    assert client.socket_names(address) == names


def test_a_malformed_address_is_named() -> None:
    with pytest.raises(AgentUnreachable, match="malformed bus address"):
        client.socket_names("unix:path=/a%zz")


def family() -> list[type[CleatError]]:
    found = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CleatError)]
    assert len(found) > 10
    return found


@pytest.mark.parametrize("kind", family())
def test_the_agents_errors_keep_class_text_and_exit_code(kind: type[CleatError]) -> None:
    error = client.error_of(kind.dbus_name(), "web: it went wrong: because (do this)")
    assert type(error) is kind
    assert str(error) == "web: it went wrong: because (do this)"
    assert error.exit_code == kind.exit_code


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("org.freedesktop.DBus.Error.ServiceUnknown", AgentUnreachable),
        ("org.freedesktop.DBus.Error.NameHasNoOwner", AgentUnreachable),
        ("org.freedesktop.DBus.Error.NoReply", AgentUnreachable),
        ("org.freedesktop.DBus.Error.AccessDenied", AccessDenied),
        ("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", AccessDenied),
        ("org.freedesktop.DBus.Error.UnknownMethod", Unsupported),
        ("org.freedesktop.DBus.Error.Timeout", DeadlineExceeded),
        ("org.cleat.Agent1.Error.OfTheFuture", CleatError),
        ("com.example.Whatever", CleatError),
    ],
)
def test_the_buss_own_errors(name: str, kind: type[CleatError]) -> None:
    assert type(client.error_of(name, "text")) is kind
