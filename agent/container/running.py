# SPDX-License-Identifier: Apache-2.0
"""A container that exists: made by launch(), or by a former agent and found again."""

from __future__ import annotations

import os

import msgspec

from agent import cgroup
from agent.container.host import Host
from agent.container.placement import Placement, cgroup_args, placement
from agent.container.record import Record
from agent.definition.model import Cgroup
from agent.definition.model import Runtime as RuntimeSettings
from agent.oci.runtime import Runtime
from agent.process import ProcessRef


class Running:
    """A container that exists: its processes, its scope, and a pidfd on its conmon."""

    def __init__(
        self,
        *,
        id: str,  # noqa: A002 the field's word
        place: Placement,
        runtime: Runtime,
        conmon: ProcessRef,
        payload: ProcessRef,
        pidfd: int,
        stop_signal: int,
    ) -> None:
        self.id = id
        self.place = place
        self.runtime = runtime
        self.conmon = conmon
        self.payload = payload
        self.pidfd = pidfd
        self.stop_signal = stop_signal
        self.keep_root = False  # a checkpoint takes over what the run changed of its root
        self.is_restored = False  # goes on from a checkpoint, where it was ready already

    @property
    def unit(self) -> str:
        """Its scope, "" where the cgroup manager makes none."""
        return self.place.unit

    @property
    def cgroup(self) -> str:
        return self.place.cgroup

    @property
    def payload_cgroup(self) -> str:
        return self.place.payload

    @property
    def supervisor_cgroup(self) -> str:
        """Where conmon lives, and the conmons of commands."""
        return self.place.supervisor

    def thaw(self) -> None:
        """Let frozen processes run, so that they can act on a signal (cgroup.freeze)."""
        cgroup.write(self.payload_cgroup, "cgroup.freeze", "0")

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def reopen(host: Host, record: Record, runtime: Runtime) -> Running | None:
    """A container of a former agent that runs, or ended while no agent looked; None when nothing is left of it."""
    if record.conmon is None or record.payload is None or not host.paths.bundle(record.id).is_dir():
        return None
    pidfd = record.conmon.open_pidfd()
    settings = msgspec.convert(record.raw.get("cgroup", {}), Cgroup)
    wanted = msgspec.convert(record.raw.get("runtime", {}), RuntimeSettings)
    return Running(
        id=record.id,
        place=placement(host.cgroup_root, settings, record.name, record.id, record.unit),
        runtime=with_args(runtime, wanted, settings),
        conmon=record.conmon,
        payload=record.payload,
        pidfd=-1 if pidfd is None else pidfd,
        stop_signal=record.stop_signal,
    )


def with_args(runtime: Runtime, wanted: RuntimeSettings, settings: Cgroup) -> Runtime:
    """The runtime with the global arguments that all commands on this container need."""
    return runtime.with_args((*cgroup_args(settings), *wanted.args))
