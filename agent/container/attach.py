# SPDX-License-Identifier: Apache-2.0
"""Joining a container's own stdio: whether it can be joined, and where (conmon(8), --full-attach).

conmon writes to the clients of its attach socket one after the other and waits for each: one that does not read stops
the container's output for everybody, and in the end the container. The agent is not in between. So whoever connects
must read always, and leave when it has nowhere to put what it reads.
"""

from __future__ import annotations

import os

import msgspec

from agent.container.command import own_process
from agent.container.host import Host
from agent.container.running import Running
from agent.definition.model import Container, LogDriver
from agent.errors import InvalidState, Unsupported


class AttachPoint(msgspec.Struct, frozen=True):
    """The attach socket, the control fifo (a line "1 HEIGHT WIDTH" resizes), and whether stdio is a terminal."""

    socket: str
    control: str
    is_terminal: bool


def attach_point(host: Host, container: Container, running: Running) -> AttachPoint:
    """Where to attach. Raises Unsupported for the passthrough log driver, InvalidState when conmon has no socket."""
    bundle = host.paths.bundle(running.id)
    socket = os.fspath(bundle / "attach")
    if not os.path.exists(socket):
        if container.log.driver is LogDriver.PASSTHROUGH:
            raise Unsupported(
                "cannot attach",
                container=container.name,
                key="log.driver",
                why="with passthrough its output goes straight to the journal, conmon never sees it",
                hint="use another log driver, or cleat logs",
            )
        raise InvalidState(
            "cannot attach", container=container.name, why="its conmon has no attach socket", hint="restart it"
        )
    terminal = bool(own_process(bundle, container.name).get("terminal", False))
    return AttachPoint(socket, os.fspath(bundle / "ctl"), terminal)
