# SPDX-License-Identifier: Apache-2.0
"""Transient scopes over D-Bus: start one around a process, change its limits, hear that it shall stop.

Facts: org.freedesktop.systemd1(5), systemd.scope(5), systemd's dbus-scope.c. JobRemoved may come before the reply to
StartTransientUnit, so the waiter is registered by unit name before the call. A job result other than `done`, or a
process that is not in the scope's cgroup afterwards, is a failure: limits would be written to a stranger.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from agent import cgroup
from agent.errors import CleatError, DeadlineExceeded, ScopeFailed, UnitExists
from agent.systemd.bus import Bus, Signal, Variant, decode_path, encode_path

logger = logging.getLogger(__name__)

SYSTEMD = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_MANAGER = "org.freedesktop.systemd1.Manager"
_UNIT_PREFIX = _PATH + "/unit/"
# One for all: the broker allows a connection a few hundred matches (dbus-daemon(1), max_match_rules_per_connection).
_JOB_NEW = f"type='signal',sender='{SYSTEMD}',interface='{_MANAGER}',member='JobNew'"
_JOB_REMOVED = f"type='signal',sender='{SYSTEMD}',interface='{_MANAGER}',member='JobRemoved'"

Property = tuple[str, str, Any]
"""(name, D-Bus signature, value), as StartTransientUnit and SetUnitProperties take them."""


class Unit(msgspec.Struct, frozen=True):
    """A row of ListUnitsByPatterns."""

    name: str
    load_state: str
    active_state: str
    sub_state: str


def unit_path(unit: str) -> str:
    return _UNIT_PREFIX + encode_path(unit)


def _removed_rule(unit: str) -> str:
    return f"type='signal',sender='{SYSTEMD}',interface='{_MANAGER}',member='UnitRemoved',arg0='{unit}'"


def _variant(signature: str, value: Any) -> Variant:
    """Checked by the library at each making: those that all containers share are made once."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return _shared_list(signature, tuple(value))
    return _shared(signature, value) if isinstance(value, int | str) else Variant(signature, value)


@functools.lru_cache(maxsize=256)
def _shared(signature: str, value: int | str) -> Variant:
    return Variant(signature, value)


@functools.lru_cache(maxsize=256)
def _shared_list(signature: str, value: tuple[str, ...]) -> Variant:
    return Variant(signature, list(value))


class Scopes:
    """All scopes of the agent. `on_stop_requested(unit)` is called when systemd wants one of them stopped."""

    def __init__(self, bus: Bus, *, on_stop_requested: Callable[[str], None]) -> None:
        self._bus = bus
        self._on_stop_requested = on_stop_requested
        self.on_stop_queued = on_stop_requested
        """The same for a stop job that waits for its turn, of a scope whose Controller was a former connection."""
        self._watched: set[str] = set()
        self._jobs: dict[str, asyncio.Future[str]] = {}
        self._removals: dict[str, asyncio.Event] = {}
        bus.on_signal("JobRemoved", self._job_removed)
        bus.on_signal("JobNew", self._job_new)
        bus.on_signal("UnitRemoved", self._unit_removed)
        bus.on_signal("RequestStop", self._request_stop)

    async def subscribe(self) -> None:
        """Ask PID 1 for its signals; again after every reconnect (its Subscribe() is per connection)."""
        await self._bus.add_match(_JOB_REMOVED)
        await self._manager("Subscribe")

    async def _manager(self, member: str, signature: str = "", *body: Any) -> list[Any]:
        return await self._bus.call(SYSTEMD, _PATH, _MANAGER, member, signature, body)

    def _job_removed(self, signal: Signal) -> None:
        _, _, unit, result = signal.body
        waiter = self._jobs.pop(unit, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(result)

    def _job_new(self, signal: Signal) -> None:
        unit = signal.body[2]
        # A scope is started once in its life, and never by somebody else: any other job for it is its stop.
        if unit in self._watched and unit not in self._jobs:
            self.on_stop_queued(unit)

    def _unit_removed(self, signal: Signal) -> None:
        removed = self._removals.get(signal.body[0])
        if removed is not None:
            removed.set()

    def _request_stop(self, signal: Signal) -> None:
        path = signal.path or ""
        if signal.interface == "org.freedesktop.systemd1.Scope" and path.startswith(_UNIT_PREFIX):
            self._on_stop_requested(decode_path(path.removeprefix(_UNIT_PREFIX)))

    async def start(self, unit: str, pid: int, properties: Sequence[Property], *, deadline: float = 30.0) -> str:
        """Put `pid` into a new scope with this agent as Controller; returns the scope's cgroup path.

        Waits for an earlier scope of that name to go. Raises ScopeFailed with systemd's words or the job's result.
        """
        try:
            async with asyncio.timeout(deadline):
                while True:
                    try:
                        return await self._start_once(unit, pid, properties)
                    except UnitExists:
                        await self._wait_until_gone(unit)
        except TimeoutError as e:
            raise DeadlineExceeded(
                f"systemd did not start {unit} within {deadline:g} s",
                hint=f"systemctl status {unit}; systemctl list-jobs",
            ) from e

    async def _start_once(self, unit: str, pid: int, properties: Sequence[Property]) -> str:
        body = [[name, _variant(signature, value)] for name, signature, value in properties]
        body.append(["PIDs", Variant("au", [pid])])
        body.append(["Controller", Variant("s", self._bus.unique_name)])
        waiter = self._jobs[unit] = asyncio.get_running_loop().create_future()
        try:
            await self._manager("StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", body, [])
            result = await waiter
        finally:
            self._jobs.pop(unit, None)
        if result != "done":
            raise ScopeFailed(f"systemd's start job for {unit} ended as {result!r}", hint=f"journalctl -u {unit}")
        group = cgroup.of_process(pid)
        if not group.endswith("/" + unit):
            raise ScopeFailed(f"process {pid} is in cgroup {group!r} and not in {unit}")
        return group

    async def _wait_until_gone(self, unit: str) -> None:
        """An earlier scope of that name is still loaded: see it removed, resetting a failed remnant."""
        removed = self._removals.setdefault(unit, asyncio.Event())
        removed.clear()
        rule = _removed_rule(unit)
        await self._bus.add_match(rule)
        try:
            if await self.discard(unit):
                await removed.wait()
        finally:
            self._removals.pop(unit, None)
            await self._bus.remove_match(rule)

    async def discard(self, unit: str) -> bool:
        """Have a scope go that failed or has no process any more; returns whether it was there.

        systemd waits for the kernel to say that a cgroup has become empty. One whose only process was ending while it
        was moved there never does, and asked to stop, such a scope waits for its Controller first (systemd's scope.c).
        """
        found = await self.list([unit])
        for one in found:
            if one.active_state == "failed":
                await self.reset_failed(unit)
            elif one.active_state in {"active", "activating"} and not await self._is_populated(unit):
                with suppress(ScopeFailed):
                    await self._bus.call(SYSTEMD, unit_path(unit), f"{SYSTEMD}.Scope", "Abandon")
                await self.stop(unit, wait=False)
        return bool(found)

    async def _is_populated(self, unit: str) -> bool:
        group = await self.control_group(unit)
        return bool(group and cgroup.processes(group))

    async def watch_stop(self, unit: str) -> None:
        """Hear of stop jobs for a scope whose Controller was another connection (a Controller cannot be set again)."""
        is_first = not self._watched
        self._watched.add(unit)
        if is_first:
            await self._bus.add_match(_JOB_NEW)

    async def unwatch_stop(self, unit: str) -> None:
        if unit in self._watched:
            self._watched.discard(unit)
            if not self._watched:
                await self._bus.remove_match(_JOB_NEW)

    async def list(self, patterns: Sequence[str]) -> list[Unit]:
        (rows,) = await self._manager("ListUnitsByPatterns", "asas", [], list(patterns))
        return [Unit(row[0], row[2], row[3], row[4]) for row in rows]

    async def control_group(self, unit: str) -> str:
        """The unit's cgroup path; "" when it has none."""
        try:
            (value,) = await self._bus.call(
                SYSTEMD,
                unit_path(unit),
                "org.freedesktop.DBus.Properties",
                "Get",
                "ss",
                ("org.freedesktop.systemd1.Scope", "ControlGroup"),
            )
        except CleatError:
            return ""
        return str(value.value)

    async def set_properties(self, unit: str, properties: Sequence[Property]) -> None:
        """Change a running unit's properties until it ends (SetUnitProperties, runtime)."""
        body = [[name, _variant(signature, value)] for name, signature, value in properties]
        await self._manager("SetUnitProperties", "sba(sv)", unit, True, body)  # noqa: FBT003 a bus argument

    async def start_unit(self, unit: str, *, wait: bool = False, deadline: float = 90.0) -> None:
        """Queue a start job, and with `wait` see its end. Raises ScopeFailed, DeadlineExceeded."""
        await self._run_job("StartUnit", unit, wait=wait, deadline=deadline)

    async def join_in(self, unit: str, *, deadline: float = 90.0) -> bool:
        """Start a unit as far as nobody wants otherwise, and see the job's end; False when somebody cancelled it.

        Raises ScopeFailed, also for a stop job in the way, and DeadlineExceeded.
        """
        return await self._end_of_job("StartUnit", unit, "fail", deadline) != "canceled"

    async def stop(self, unit: str, *, wait: bool = True, deadline: float = 90.0) -> None:
        """Queue a stop job, and with `wait` see its end. A unit that is not loaded counts as stopped."""
        try:
            await self._run_job("StopUnit", unit, wait=wait, deadline=deadline)
        except ScopeFailed as e:
            if "not loaded" not in e.why:
                raise

    async def _run_job(self, member: str, unit: str, *, wait: bool, deadline: float) -> None:
        if not wait:
            await self._manager(member, "ss", unit, "replace")
            return
        result = await self._end_of_job(member, unit, "replace", deadline)
        if result != "done":
            raise ScopeFailed(f"systemd's job for {unit} ended as {result!r}", hint=f"journalctl -u {unit}")

    async def _end_of_job(self, member: str, unit: str, mode: str, deadline: float) -> str:
        waiter = self._jobs[unit] = asyncio.get_running_loop().create_future()
        try:
            await self._manager(member, "ss", unit, mode)
            async with asyncio.timeout(deadline):
                return str(await waiter)
        except TimeoutError as e:
            if isinstance(e, CleatError):
                raise
            raise DeadlineExceeded(f"systemd did not end its job for {unit} within {deadline:g} s") from e
        finally:
            self._jobs.pop(unit, None)

    async def forbid_restart(self, unit: str) -> None:
        """Have a service that is ending not be restarted by systemd (Restart=): its end is not waited for.

        A stop job for it alone: those that require it have nothing to do with that.
        """
        await self._manager("StopUnit", "ss", unit, "ignore-dependencies")

    async def restarts(self, unit: str) -> int:
        """How often systemd has restarted a service by itself since somebody started it."""
        return int(await self._property(unit_path(unit), "Service", "NRestarts"))

    async def reset_failed(self, unit: str) -> None:
        """Forget a failed unit, so that its name can be used again; nothing happens when it is not there."""
        try:
            await self._manager("ResetFailedUnit", "s", unit)
        except ScopeFailed as e:
            logger.debug("%s", e)

    async def _property(self, path: str, interface: str, name: str) -> Any:
        (value,) = await self._bus.call(
            SYSTEMD, path, "org.freedesktop.DBus.Properties", "Get", "ss", (f"{SYSTEMD}.{interface}", name)
        )
        return value.value

    async def main_pid(self, unit: str) -> int:
        """A service's main process as systemd sees it now, 0 for none."""
        return int(await self._property(unit_path(unit), "Service", "MainPID"))

    async def job_type(self, unit: str) -> str:
        """The type of the unit's job (`start`, `stop`, `restart`, ...), "" when it has none."""
        number, path = await self._property(unit_path(unit), "Unit", "Job")
        try:
            return str(await self._property(path, "Job", "JobType")) if number else ""
        except CleatError:
            # It has ended meanwhile.
            return ""

    async def is_shutting_down(self) -> bool:
        """Whether the host is on its way down: every unit is being stopped then, in the order of the units."""
        return bool(await self._property(_PATH, "Manager", "SystemState") == "stopping")

    async def manager_cgroup(self) -> str:
        """The cgroup below which this systemd keeps its slices ("" for the root), Manager's ControlGroup property."""
        return str(await self._property(_PATH, "Manager", "ControlGroup"))

    async def manager_version(self) -> str:
        """systemd's, with what the distribution adds to it: "257.9-1~deb13u1"."""
        return str(await self._property(_PATH, "Manager", "Version"))
