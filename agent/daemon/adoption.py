# SPDX-License-Identifier: Apache-2.0
"""Taking over what a former agent left, and clearing up what it left half-made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

from agent import cgroup, storage
from agent.container import ended
from agent.container import record as records
from agent.container.record import Record
from agent.definition.load import from_raw
from agent.errors import CleatError
from agent.oci.runtime import Runtime
from agent.systemd import journal

if TYPE_CHECKING:
    from agent.daemon.agent import Agent
    from agent.daemon.scope_stops import ScopeStops


async def adopt(agent: Agent, stops: ScopeStops) -> int:
    """Take over what a former agent left; returns how many containers run on. Leftovers of half-made starts go."""
    found = records.read_all(agent.host.paths.records)
    runtimes = await _runtimes_of(agent, found)
    keep = {record.id for record in found if _adopt_one(agent, record, runtimes.get(record.runtime))}
    await _clear_leftovers(agent, {record.id: record for record in found}, keep)
    await stops.watch()
    for record in found:
        supervisor = agent.supervisors.get(record.name)
        if supervisor is None or not supervisor.wanted or supervisor.is_active:
            continue
        if not record.is_at_rest:
            supervisor.begin()
        elif supervisor.listening.on_demand:
            supervisor.demand.listen()
    return len(keep)


async def _runtimes_of(agent: Agent, found: Iterable[Record]) -> dict[str, Runtime]:
    runtimes: dict[str, Runtime] = {}
    for name in {record.runtime for record in found if record.runtime}:
        try:
            runtimes[name], _ = await agent.host.runtime(name)
        except CleatError as e:
            # Perhaps its package is being upgraded. What runs needs it for little, and not now.
            runtimes[name] = agent.host.absent_runtime(name)
            journal.send(journal.Event.FEATURE_MISSING, "what it runs is taken over all the same", error=e)
    return runtimes


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


async def _clear_leftovers(agent: Agent, by_id: Mapping[str, Record], keep: set[str]) -> None:
    """Scopes and bundles without a supervisor: end what runs in them, then remove them."""
    adopted = {unit for s in agent.supervisors.values() if s.running is not None for unit in s.running.place.units}
    for unit in await agent.host.scopes.list(["cleat-*.scope"]):
        if unit.name not in adopted:
            cgroup.kill(await agent.host.scopes.control_group(unit.name))
            await agent.host.scopes.discard(unit.name)
    try:
        present = {path.name for path in agent.host.paths.bundles.iterdir()}
    except FileNotFoundError:
        return
    for container_id in sorted(present - keep):
        record = by_id.get(container_id)
        try:
            await ended.clear(agent.host, container_id, record, agent.host.known_runtimes)
        except CleatError as e:
            journal.send(journal.Event.UNCLEAN_LEFTOVER, "", container=record.name if record else "", error=e)
    await _clear_overlays(agent, keep)


async def _clear_overlays(agent: Agent, keep: set[str]) -> None:
    folder = agent.host.paths.state / agent.host.paths.overlays
    if folder.is_dir():
        left = [path for path in folder.iterdir() if path.name not in keep]
        await storage.remove_tree(*left, spawner=agent.host.files)
