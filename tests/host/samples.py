# SPDX-License-Identifier: Apache-2.0
"""Definitions that several tests use, and questions that they ask of a host."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.host.hosts import Host, Result

ROOT = "/srv/base"
"""Made by `Host.rootfs("base")`."""

SERVICE = "trap 'exit 0' TERM; echo up; while :; do sleep 1000 & wait; done"
"""A program that runs until SIGTERM, which it obeys at once."""


def definition(script: str = SERVICE, *, head: str = "", tables: str = "") -> str:
    """A definition that runs a shell script; `head` are more top-level keys, `tables` whatever follows them."""
    return f'rootfs = "{ROOT}"\ncommand = ["/bin/sh", "-c", {json.dumps(script)}]\n{head}\n{tables}\n'


def service(script: str, keys: str) -> str:
    """A definition with a [service] table."""
    return definition(script, tables=f"[service]\n{keys}")


def add(host: Host, **definitions: str) -> None:
    """Puts definitions in place; `_` in a name is a dash. The agent is not told."""
    host.rootfs("base")
    for name, text in definitions.items():
        host.definition(name.replace("_", "-"), text)


def run(host: Host, **definitions: str) -> None:
    """Puts definitions in place and returns when all of them are up."""
    add(host, **definitions)
    host.reload()
    for name in definitions:
        host.wait_event(name.replace("_", "-"), "ready")


def identity(host: Host, name: str) -> tuple[Any, ...]:
    """What stays the same as long as a container is not started anew."""
    status = host.status(name)
    return tuple(status[key] for key in ("id", "pid", "conmon_pid", "started_at", "restarts"))


def states(host: Host) -> dict[str, str]:
    """All containers but those whose definition was refused before anything ran."""
    return {s["name"]: s["state"] for s in host.status() if s["error_code"] != "definition-rejected" or s["id"]}


def refused(host: Host) -> set[str]:
    return {s["name"] for s in host.status() if s["error_code"] == "definition-rejected"}


def reload_with_problems(host: Host) -> Result:
    """A reload that takes in what is good; its exit code says that not everything was."""
    result = host.cleat("reload-agent", check=False, timeout=120)
    assert result.returncode == 1, result
    return result


def agent_restarted(host: Host, *how: str) -> None:
    """Ends the agent (by default kill -9) and returns when its successor says that it has taken over."""
    mark = host.cursor()
    host.run(list(how) or ["systemctl", "kill", "--signal=KILL", "--kill-whom=main", "cleat.service"])
    host.wait_journal("CLEAT_EVENT=agent-started", since=mark)
    host.run(["systemctl", "start", "cleat.service"])


def faults(host: Host) -> list[str]:
    """What the agent said since the test's mark that a user must never see: Python's words about its own mistakes."""
    bad = ("Traceback", "Error(", "never retrieved", "fault of its own", "unhandled errors")
    entries = host.journal("_SYSTEMD_UNIT=cleat.service")
    messages = [(str(entry.get("MESSAGE", "")), "EXCEPTION" in entry) for entry in entries]
    return [message for message, has_exception in messages if has_exception or any(word in message for word in bad)]
