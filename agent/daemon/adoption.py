# SPDX-License-Identifier: Apache-2.0
"""Taking over what a former agent left."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from agent.container import record as records
from agent.container import unattended
from agent.container.record import Record
from agent.daemon import leftovers
from agent.daemon.handles import handle_name
from agent.definition.load import from_raw
from agent.errors import CleatError
from agent.oci.runtime import Runtime
from agent.status import State
from agent.systemd import journal

if TYPE_CHECKING:
    from agent.daemon.agent import Agent
    from agent.daemon.scope_stops import ScopeStops

logger = logging.getLogger(__name__)

_ON_ITS_WAY = frozenset({State.STARTING, State.BACKOFF})


async def adopt(agent: Agent, stops: ScopeStops) -> int:
    """Take over what a former agent left; returns how many containers run on. Leftovers of half-made starts go."""
    found = records.read_all(agent.host.paths.records)
    runtimes = await _runtimes_of(agent, found)
    stopped = await _stopped_meanwhile(agent, found)
    keep = {record.id for record in found if _adopt_one(agent, record, runtimes.get(record.runtime))}
    await leftovers.clear(agent, {record.id: record for record in found}, keep)
    await stops.watch()
    for record in found:
        supervisor = agent.supervisors.get(record.name)
        if supervisor is None or not supervisor.wanted or supervisor.is_active:
            continue
        if record.name in stopped:
            await supervisor.stop()
            supervisor.event(journal.Event.STOPPED, f"{record.name} stopped")
        elif not record.is_at_rest:
            supervisor.begin()
        elif supervisor.listening.on_demand:
            supervisor.demand.listen()
    return len(keep)


async def _stopped_meanwhile(agent: Agent, found: Iterable[Record]) -> set[str]:
    """Containers that were not up when the last agent ended, but meant to be, and whose handle was stopped since."""
    folder = agent.host.paths.records
    waited = [record.name for record in found if record.wanted and record.state in _ON_ITS_WAY]
    try:
        written = {name: records.written_at(folder, name) for name in waited}
    except OSError as e:
        logger.debug("%s", e)
        return set()
    stopped = await unattended.stopped_handles(min(written.values())) if written else {}
    return {name for name, time in written.items() if stopped.get(handle_name(name), 0.0) > time}


async def _runtimes_of(agent: Agent, found: Iterable[Record]) -> dict[str, Runtime]:
    names = {record.runtime for record in found if record.runtime}
    return {name: await agent.host.runtime_or_absent(name) for name in names}


def _adopt_one(agent: Agent, record: Record, runtime: Runtime | None) -> bool:
    try:
        definition = from_raw(record.raw, record.name, record.source)
    except CleatError as e:
        journal.send(journal.Event.UNCLEAN_LEFTOVER, "its record cannot be read", container=record.name, error=e)
        return False
    supervisor = agent.create(msgspec.structs.replace(definition, digest=record.digest))
    try:
        supervisor.demand.open_sockets()
    except CleatError as e:
        journal.send(journal.Event.SOCKET_FAILED, "", container=record.name, error=e)
    return supervisor.adopt(record, runtime)
