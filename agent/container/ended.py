# SPDX-License-Identifier: Apache-2.0
"""What is left to do when a run is over: how it ended, and that nothing of it stays behind."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from agent import cgroup, storage
from agent.conmon import monitor
from agent.container import cgroups
from agent.container.host import Host
from agent.container.outcome import UNKNOWN_EXIT_CODE, Cause, Outcome
from agent.container.placement import Placement
from agent.container.record import Record
from agent.container.running import Running
from agent.errors import CleatError, DeadlineExceeded
from agent.oci.runtime import Runtime
from agent.process import is_named
from agent.spawn.spawner import HERE

logger = logging.getLogger(__name__)
_END_DEADLINE = 5.0


def outcome_of(host: Host, running: Running, cause: Cause | None) -> Outcome:
    """How the run ended, after conmon has: its exit file, its oom file; without an exit file conmon was lost."""
    path = host.paths.bundle(running.id)
    found = monitor.read_exit_file(os.fspath(path / "exit"), running.id)
    oom = monitor.was_oom_killed(os.fspath(path / "persist")) or cgroup.was_oom_killed(running.payload_cgroup)
    if found is None:
        return Outcome(
            code=UNKNOWN_EXIT_CODE,
            cause=cause if cause is Cause.STOPPED else Cause.LOST,
            oom_killed=oom,
            error="conmon ended without telling the exit code; the payload was killed",
            error_code="conmon-lost",
        )
    if cause is None:
        cause = Cause.OOM if oom else Cause.EXIT
    return Outcome(code=found.code, cause=cause, finished_at=found.finished_at, oom_killed=oom)


async def clear(host: Host, container_id: str, record: Record | None, runtimes: Sequence[Runtime]) -> None:
    """Remove a bundle that no supervisor owns: what a former agent left half-made. Its processes were ended before."""
    if record is not None and record.cgroup:
        await cgroups.kill_and_see_gone(record.cgroup)
    await _kill_conmon(host, container_id)
    for runtime in runtimes:
        await delete(runtime, container_id)
    await remove(host, container_id)


async def kill_all(host: Host, container_id: str, place: Placement) -> None:
    """End everything of a start that fails, and see it gone: conmon, wherever that is, and the groups."""
    await _kill_conmon(host, container_id)
    if place.supervisor_is_shared:
        await cgroups.kill_and_see_gone(place.supervisor, named=container_id)
    for group in place.groups:
        await cgroups.kill_and_see_gone(group)


async def _kill_conmon(host: Host, container_id: str) -> None:
    conmon = monitor.read_pid(os.fspath(host.paths.bundle(container_id) / "conmon.pid"))
    pidfd = conmon.open_pidfd() if conmon is not None else None
    if conmon is None or pidfd is None:
        return
    try:
        if is_named(conmon.pid, container_id):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            with suppress(DeadlineExceeded):
                await monitor.wait_ended(pidfd, deadline=_END_DEADLINE)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


async def tidy(host: Host, running: Running) -> None:
    """Remove what belonged to a run that has ended: stragglers, the runtime's state, bundle, overlay."""
    cgroup.kill(running.payload_cgroup)
    await cgroups.let_go(host, running.place)
    await delete(running.runtime, running.id)
    await cgroups.remove(running.place)
    await remove(host, running.id, keep_root=running.keep_root)


class Leftovers:
    """Runs of a container of which something could not be removed; it is tried again at the next start or stop."""

    def __init__(self, host: Host, name: str) -> None:
        self._host = host
        self._name = name
        self._runs: list[Running] = []

    async def tidy(self, running: Running) -> None:
        """Remove all of a run. Raises CleatError where something has to stay for now."""
        try:
            await tidy(self._host, running)
        except CleatError:
            self._runs.append(running)
            raise

    async def tidy_again(self) -> None:
        """What could not be removed before may go by now: a tool is back, a disk has room."""
        left, self._runs = self._runs, []
        for running in left:
            try:
                await tidy(self._host, running)
            except CleatError as e:
                logger.debug("%s: %s", self._name, e)
                self._runs.append(running)


async def remove(host: Host, container_id: str, *, keep_root: bool = False) -> None:
    """Bundle, and what the run wrote to its root."""
    root = host.paths.overlay(container_id)
    is_there = not keep_root and root.exists()
    own = (root,) if is_there else ()
    spawner = host.files if is_there else HERE
    await _insist(lambda: storage.remove_tree(host.paths.bundle(container_id), *own, spawner=spawner))


async def delete(runtime: Runtime, container_id: str) -> None:
    """Let the runtime forget the container; where it knows none there is nothing to do."""
    if _has_state(runtime, container_id):
        await _insist(lambda: runtime.delete(container_id, force=True))


async def _insist(step: Callable[[], Awaitable[None]]) -> None:
    """A program may be ended once by no fault of its own: with its executor, or by a stop of the caller's unit."""
    try:
        await step()
    except CleatError:
        await step()


def _has_state(runtime: Runtime, container_id: str) -> bool:
    """Whether the runtime has a record of the container: a folder of its name below --root, in crun as in runc."""
    return os.path.isdir(f"{runtime.root}/{container_id}")
