# SPDX-License-Identifier: Apache-2.0
"""Putting a fresh conmon where its placement says, and clearing up behind it (placement.py says what is where)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress

from agent import cgroup
from agent.container import scope
from agent.container.host import Host
from agent.container.placement import SHARED_SCOPE, SHARED_SLICE, Placement
from agent.definition.graph import predecessors
from agent.definition.model import Container
from agent.errors import CleatError, ScopeFailed
from agent.process import is_named, pidfd_ready
from agent.systemd.scopes import Property

_END_DEADLINE = 5.0
_shared_turn = asyncio.Lock()


async def enter(host: Host, container: Container, place: Placement, pid: int, stop_signal: int) -> None:
    """Move conmon out of the agent's cgroup, into a new scope or group. Raises ScopeFailed, DeadlineExceeded."""
    if place.monitor_unit == SHARED_SCOPE:
        await _enter_shared(host, place, pid)
        return
    if place.first_unit:
        await host.scopes.start(place.first_unit, pid, _properties(host, container, place, stop_signal))
    else:
        _make_parents(place.supervisor)
    cgroup.move(place.supervisor, pid)
    if not cgroup.contains(place.supervisor, pid):
        raise ScopeFailed(f"conmon is in {cgroup.of_process(pid)!r} and not in {place.supervisor}")


def _properties(host: Host, container: Container, place: Placement, stop_signal: int) -> list[Property]:
    found = scope.properties(
        container,
        stop_signal=stop_signal,
        after=predecessors(container),
        bound_to=host.bound_to,
        is_needed=host.is_needed(container.name),
    )
    if not place.monitor_unit:
        return found
    limits = {name for name, _, _ in scope.limits(container)}
    kept = [item for item in found if item[0] not in {*limits, "Description"}]
    return [("Description", "s", f"conmon of container {container.name}"), *kept]


async def _enter_shared(host: Host, place: Placement, pid: int) -> None:
    """Join the scope that all conmons without one of their own share; the first one makes it."""
    async with _shared_turn:
        if cgroup.processes(place.supervisor):
            with suppress(ScopeFailed):
                # It may have gone with its last member right now.
                cgroup.move(place.supervisor, pid)
                return
        await host.scopes.start(SHARED_SCOPE, pid, _shared_properties())
        cgroup.move(place.supervisor, pid)


def _shared_properties() -> Sequence[Property]:
    return (
        ("Description", "s", "conmon of containers with cgroup mode no-conmon"),
        ("Slice", "s", SHARED_SLICE),
        ("After", "as", [scope.CONTAINERS_TARGET]),
        ("Delegate", "b", True),
        ("CollectMode", "s", "inactive-or-failed"),
    )


def _make_parents(group: str) -> None:
    """Without a service manager to make them."""
    try:
        os.makedirs(cgroup.directory(group), mode=0o755, exist_ok=True)
    except OSError as e:
        raise ScopeFailed(f"cannot make cgroup {group}", why=e.strerror or "") from e


async def take_charge(host: Host, container: Container, place: Placement) -> None:
    """The runtime has made the scope: give it the limits, and hear of its stop. Raises ScopeFailed."""
    if not place.runtime_scope:
        return
    limits = scope.limits(container)
    if limits:
        await host.scopes.set_properties(place.unit, limits)
    await host.scopes.watch_stop(place.unit)


async def let_go(host: Host, place: Placement) -> None:
    """Before the runtime stops its scope itself: that is nobody's wish to stop the container."""
    if place.runtime_scope:
        # A stop that ended the container is heard of first: systemd's signals and answers come in order.
        with suppress(CleatError):
            await host.scopes.is_shutting_down()
        await host.scopes.unwatch_stop(place.unit)


async def remove(place: Placement) -> None:
    """Groups that no service manager removes, with what is still in them."""
    for group in place.own_groups:
        await kill_and_see_gone(group)
        cgroup.remove(group)


async def discard_units(host: Host, place: Placement) -> None:
    """The scopes of a start that failed, after its processes were killed."""
    with suppress(CleatError):
        for unit in place.units:
            await host.scopes.discard(unit)
        if place.monitor_unit == SHARED_SCOPE:
            async with _shared_turn:
                await host.scopes.discard(SHARED_SCOPE)


async def kill_and_see_gone(group: str, *, named: str = "") -> None:
    """SIGKILL everything in a cgroup and see it gone, so that the cgroup can be removed.

    With `named` only the processes that have it among their arguments.
    """
    with suppress(TimeoutError):  # one that cannot be killed now (state D): the cgroup goes with the container
        async with asyncio.timeout(_END_DEADLINE):
            while await _members_gone(group, named):
                pass


async def _members_gone(group: str, named: str) -> bool:
    """Returns whether there were any: one may just have had a child."""
    pidfds: list[int] = []
    try:
        for pid in cgroup.processes(group):
            with suppress(OSError):
                pidfds.append(os.pidfd_open(pid))
                if named and not (is_named(pid, named) and cgroup.contains(group, pid)):
                    os.close(pidfds.pop())
        if named:
            for pidfd in pidfds:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        else:
            cgroup.kill(group)
        for pidfd in pidfds:
            await pidfd_ready(pidfd)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)
    return bool(pidfds)
