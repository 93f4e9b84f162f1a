# SPDX-License-Identifier: Apache-2.0
"""Looks after a foreground container whose `cleat run` may be killed: then the container ends and nothing is left.

A fork, made before there is anything to take along, that sleeps on a pipe which its parent holds open. It has a scope
of its own, so that it is killed neither with the caller's unit nor with the container. When the pipe ends before the
parent was done, it does what the parent would have.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from agent import cgroup, storage
from agent.conmon import monitor
from agent.container import ended
from agent.container import record as records
from agent.container.host import Host
from agent.container.scope import FOREGROUND
from agent.errors import CleatError, InvalidState
from agent.systemd.scopes import Property, Scopes

_DONE = b"."
_STOP_USEC = 15_000_000


class Guard:
    """The parent's handle on it. Once it watches, it must be dismissed before the parent ends."""

    def __init__(self, clean_up: Callable[[str], Awaitable[None]]) -> None:
        """`clean_up` is called with the container's id, in the fork. Raises OSError."""
        theirs, self._ours = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if not self.pid:
            _sleep_and_clean(theirs, clean_up)
        os.close(theirs)

    async def settle(self, scopes: Scopes, name: str) -> None:
        """Move it to where it is safe. Raises ScopeFailed, DeadlineExceeded."""
        properties: list[Property] = [
            ("Description", "s", f"Cleans up behind cleat run of {name}"),
            ("Slice", "s", "cleat.slice"),
            ("TimeoutStopUSec", "t", _STOP_USEC),
            ("CollectMode", "s", "inactive-or-failed"),
        ]
        await scopes.start(f"{FOREGROUND}guard:{name}.scope", self.pid, properties)

    def watch(self, container_id: str) -> None:
        """There is a container now."""
        os.write(self._ours, container_id.encode())

    def dismiss(self, *, is_clean: bool) -> None:
        """The parent is done: let it end, or first remove what the parent could not, and wait for that."""
        if is_clean:
            os.write(self._ours, _DONE)
        os.close(self._ours)
        os.waitpid(self.pid, 0)


def _sleep_and_clean(pipe: int, clean_up: Callable[[str], Awaitable[None]]) -> None:
    """The child's whole life; does not return."""
    try:
        os.setsid()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(signum, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.closerange(3, pipe)
        os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
        heard = b""
        while data := os.read(pipe, 4096):
            heard += data
        if heard and not heard.endswith(_DONE):
            asyncio.run(_within(clean_up(heard.decode())))
    finally:
        os._exit(0)


async def _within(work: Awaitable[None]) -> None:
    async with asyncio.timeout(60.0):
        await work


async def clear_container(host: Host, container_id: str) -> None:
    """End the container of a dead parent and remove what it had. Raises CleatError."""
    for record in records.read_all(host.paths.records):
        if record.id != container_id:
            continue
        if record.cgroup:
            cgroup.kill(record.cgroup)
        if record.conmon is not None and (pidfd := record.conmon.open_pidfd()) is not None:
            with suppress(CleatError):
                await monitor.wait_ended(pidfd, deadline=5.0)
            os.close(pidfd)
        runtimes = [(await host.runtime(record.runtime))[0]] if record.runtime else []
        await ended.clear(host, record.id, record, runtimes)
        records.remove(host.paths.records, record.name)


def lock(host: Host, name: str) -> int:
    """Hold the name for as long as the fd is open. Raises InvalidState when it runs in the foreground already."""
    path = _lock_path(host, name)
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise InvalidState("runs in the foreground already", container=name, hint="stop that one first") from None
        if os.fstat(fd).st_nlink:
            return fd
        os.close(fd)


def unlock(host: Host, name: str, fd: int) -> None:
    _lock_path(host, name).unlink(missing_ok=True)
    os.close(fd)


def _lock_path(host: Host, name: str) -> Path:
    return host.paths.records / f"{name}.lock"


async def clear_dead(host: Host) -> None:
    """What earlier foreground containers left that nobody could clean up behind: both parent and guard were killed."""
    for record in records.read_all(host.paths.records):
        if record.conmon is None or not record.conmon.is_alive():
            with suppress(InvalidState):
                await clear_locked(host, record.name, record.id)
    await _clear_roots(host)
    known = {record.id for record in records.read_all(host.paths.records)}
    dead = [path.name for path in host.paths.bundles.iterdir() if path.name not in known and _is_dead(host, path)]
    if dead:
        used = (host.paths.runtime / "runtime").iterdir()
        runtimes = [(await host.runtime(folder.name))[0] for folder in used]
        for container_id in dead:
            await ended.clear(host, container_id, None, runtimes)


async def _clear_roots(host: Host) -> None:
    """What containers wrote to their roots before a reboot, which has taken their bundles."""
    folder = host.paths.state / host.paths.overlays
    try:
        # Listed first: a bundle is there before its root is.
        roots = list(folder.iterdir())
    except FileNotFoundError:
        return
    left = [root for root in roots if not host.paths.bundle(root.name).exists()]
    await storage.remove_tree(*left, spawner=host.files)


async def clear_locked(host: Host, name: str, container_id: str) -> None:
    """clear_container() for a name that nobody holds. Raises InvalidState when somebody does, CleatError."""
    held = lock(host, name)
    try:
        await clear_container(host, container_id)
    finally:
        unlock(host, name, held)


def _is_dead(host: Host, bundle: Path) -> bool:
    """Without conmon, and too old for a start that is just going on."""
    try:
        age = time.time() - bundle.stat().st_mtime
    except FileNotFoundError:
        return False
    return age > host.config.create_timeout_sec and monitor.read_pid(os.fspath(bundle / "conmon.pid")) is None
