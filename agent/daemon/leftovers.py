# SPDX-License-Identifier: Apache-2.0
"""Clearing up what a former agent left half-made: processes, bundles, states of runtimes, layers, groups."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from agent import cgroup, storage
from agent.container import cgroups, ended
from agent.container.placement import SHARED_SLICE
from agent.container.record import Record
from agent.errors import CleatError
from agent.oci.runtime import Runtime
from agent.systemd import journal

if TYPE_CHECKING:
    from agent.daemon.agent import Agent

_EXECUTOR_DEADLINE = 10.0
_SCOPES = "cleat-*.scope"


async def clear(agent: Agent, by_id: Mapping[str, Record], keep: set[str]) -> None:
    """Scopes and bundles without a supervisor: end what runs in them, then remove them."""
    await _end_processes(agent)
    await _see_executor_ended(agent, keep)
    roots = {root: _ids(root) - keep for root in _folders(agent.host.paths.runtime / "runtime")}
    runtimes = [await _runtime_at(agent, root) for root, left in roots.items() if left]
    for container_id in sorted(_ids(agent.host.paths.bundles).union(*roots.values()) - keep):
        record = by_id.get(container_id)
        try:
            await ended.clear(agent.host, container_id, record, runtimes)
        except CleatError as e:
            journal.send(journal.Event.UNCLEAN_LEFTOVER, "", container=record.name if record else "", error=e)
    await _clear_overlays(agent, keep)
    await _remove_empty_groups(agent)


async def _remove_empty_groups(agent: Agent) -> None:
    """What a runtime makes whose conmon was let go by the agent's end, before there was a scope."""
    parent = f"{agent.host.cgroup_root.rstrip('/')}/{SHARED_SLICE}"
    units = {unit.name for unit in await agent.host.scopes.list([_SCOPES])}
    for folder in cgroup.directory(parent).glob(_SCOPES):
        if folder.name not in units:
            cgroup.remove(f"{parent}/{folder.name}")


async def _end_processes(agent: Agent) -> None:
    """End what runs in scopes and groups that belong to no container that was taken over."""
    places = [s.running.place for s in agent.supervisors.values() if s.running is not None]
    adopted = {unit for place in places for unit in place.units}
    for unit in await agent.host.scopes.list([_SCOPES]):
        if unit.name not in adopted:
            await cgroups.kill_and_see_gone(await agent.host.scopes.control_group(unit.name))
            await agent.host.scopes.discard(unit.name)


async def _see_executor_ended(agent: Agent, keep: set[str]) -> None:
    """What the last executor was doing for a half-made start is over when there is a new one."""
    if _ids(agent.host.paths.bundles) - keep:
        with suppress(CleatError, TimeoutError):
            async with asyncio.timeout(_EXECUTOR_DEADLINE):
                await agent.host.spawner.bounding_set()


async def _runtime_at(agent: Agent, root: Path) -> Runtime:
    """The runtime that keeps its state there."""
    known = (runtime for runtime in agent.host.known_runtimes if runtime.root == os.fspath(root))
    return next(known, None) or await agent.host.runtime_or_absent(root.name)


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except FileNotFoundError:
        return []


def _ids(path: Path) -> set[str]:
    """Ids of containers that have something in a folder; crun keeps its cache beside them."""
    return {folder.name for folder in _folders(path) if not folder.name.startswith(".")}


async def _clear_overlays(agent: Agent, keep: set[str]) -> None:
    folder = agent.host.paths.state / agent.host.paths.overlays
    if folder.is_dir():
        left = [path for path in folder.iterdir() if path.name not in keep]
        await storage.remove_tree(*left, spawner=agent.host.files)
