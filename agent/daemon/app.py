# SPDX-License-Identifier: Apache-2.0
"""The agent's program: everything is built here, handed on by argument, and taken down again."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import sys
from contextlib import suppress

from agent import paths as all_paths
from agent import storage
from agent.background import Background
from agent.container.host import Host
from agent.container.scope import CONTAINERS_TARGET
from agent.container.supervisor import Supervisor
from agent.daemon.adoption import adopt
from agent.daemon.agent import Agent
from agent.daemon.api import Api
from agent.daemon.handle_socket import HandleSocket
from agent.daemon.handles import Handles
from agent.daemon.interface import NAME
from agent.daemon.metrics import Metrics
from agent.daemon.operations import Operations
from agent.daemon.polkit import Polkit
from agent.daemon.scope_stops import ScopeStops
from agent.daemon.watching import Watch
from agent.definition.agent_config import load_config
from agent.definition.load import Loader
from agent.errors import CleatError
from agent.process import release_memory
from agent.spawn import child
from agent.spawn.spawner import Remote
from agent.systemd import journal
from agent.systemd.bus import Bus
from agent.systemd.fd_store import FdStore
from agent.systemd.lacking import NEEDED, lacking
from agent.systemd.notify import AgentNotify
from agent.systemd.passed_fds import take_listen_fds
from agent.systemd.scopes import Scopes

logger = logging.getLogger(__name__)

# systemd shall hear within its own start timeout, whatever a slow container does.
_FIRST_RECONCILE_SEC = 60.0
_WATCHDOG_SHARE = 0.5


class App:
    """The composition root."""

    def __init__(self) -> None:
        self.paths = all_paths.here()
        is_user = os.geteuid() != 0
        self.config, self.config_problems = load_config(self.paths)
        self.notify = AgentNotify()
        self.bus = Bus(user=is_user)
        self.scopes = Scopes(self.bus, on_stop_requested=self._stop_requested)
        self.fd_store = FdStore(self.notify, take_listen_fds())
        self.executor = None if is_user else Remote(self.paths.executor)
        self.host = Host(self.paths, self.config, self.scopes, self.fd_store, self.executor)
        self.agent = Agent(self.host, Loader(self.paths, self.config))
        self.stops = ScopeStops(self.agent)
        self.scopes.on_stop_queued = self.stops.queued
        self.handles = Handles(self.agent)
        self.handle_socket = HandleSocket(self.paths.runtime / "handles", self.handles.verbs)
        self.operations = Operations(self.agent, self.bus.peer_uid, self.bus.peer_pid)
        self.api = Api(self.bus, self.agent, self.operations, Polkit(self.bus, os.geteuid()))
        self.agent.on_change.append(self._status_changed)
        self.agent.on_loaded.append(self._tell_status)
        self.agent.on_removed.append(self.handles.removed)
        self.agent.before_kill = self.handles.before_kill
        self.metrics = Metrics(self.agent, self.paths.runtime / "metrics", self.config.metrics.listen)
        self.watch = Watch(self.paths.definition_folders, self._reload_by_itself) if self.config.watch else None
        self._ended = asyncio.Event()
        self._status_due = False
        self._last_status = ""
        self._background = Background()
        self.bus.on_lost.append(self._bus_lost)
        self.bus.on_back.append(self._bus_back)

    def _stop_requested(self, unit: str) -> None:
        self.stops.requested(unit)

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT. Raises CleatError when the agent cannot even begin."""
        self._make_folders()
        self._have_executor_started()
        child.null_fd()  # kept open; now, so that the number of fds says something
        self._watch_signals()
        async with self.notify.more_time():
            await self.bus.connect()
            await self.scopes.subscribe()
            self.host.cgroup_root = await self.scopes.manager_cgroup()
            adopted = await adopt(self.agent, self.stops)
        self.operations.sessions.adopt(self.agent.supervisors.values())
        if os.geteuid() == 0:
            self.handle_socket.start()
        left_waiting = self.handles.left_waiting()
        await self.bus.request_name(NAME)
        for problem in self.config_problems:
            journal.send(journal.Event.DEFINITION_REJECTED, str(problem))
        journal.send(journal.Event.AGENT_STARTED, f"cleat started, {adopted} containers taken over")
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in (self.bus.run(), self._watchdog())]
            first = group.create_task(self._reconcile())
            # Until then a definition may still want what was left in the store.
            first.add_done_callback(lambda task: None if task.cancelled() else self.fd_store.close_rest())
            async with self.notify.more_time():
                await self._launched(first)
                await self.agent.see_ends()
            self.notify.ready(self._summary())
            await self._start_target()
            await self._tell_what_is_lacking()
            if os.geteuid() == 0:
                await self.handle_socket.resume(left_waiting)
                tasks.append(group.create_task(self.handles.run()))
            self.metrics.start()
            if self.watch is not None:
                self.watch.start()
            await self._ended.wait()
            await self.agent.finish_ends()
            # Told first: journald cannot name the unit of a process that has ended when it reads.
            journal.send(journal.Event.AGENT_STOPPING, "cleat stops, its containers run on")
            self.notify.stopping("leaving the containers as they are")
            self.metrics.close()
            self.handle_socket.close()
            if self.watch is not None:
                self.watch.close()
            first.cancel()
            for task in tasks:
                task.cancel()
        await self.operations.sessions.leave()
        async with self.notify.more_time():
            await self.agent.leave()
        self.bus.close()

    def _make_folders(self) -> None:
        """The agent's folders; those that a mapped root must pass through can be entered, not listed."""
        for folder, mode in (
            (self.paths.runtime, 0o711),
            (self.paths.bundles, 0o711),
            (self.paths.records, 0o700),
            (self.paths.runtime / "runtime", 0o700),
            (self.paths.state, 0o711),
            (self.paths.state / "overlay", 0o711),
        ):
            try:
                folder.mkdir(mode=mode, parents=True, exist_ok=True)
            except OSError as e:
                raise CleatError(
                    f"cannot create {folder}", why=e.strerror or "", hint="see cleat.service(8), FILES"
                ) from e
        storage.scatter(self.paths.state / "overlay")
        with suppress(OSError):
            os.chdir(self.paths.runtime)

    def _have_executor_started(self) -> None:
        """It is looked for again when something is to be spawned; what runs can be taken over without."""
        try:
            if self.executor is not None:
                self.executor.connect()
        except CleatError as e:
            logger.error("%s", e)

    async def _start_target(self) -> None:
        """Scopes are ordered after this target: at shutdown they are stopped before the agent and the bus."""
        try:
            await self.scopes.start_unit(CONTAINERS_TARGET)
        except CleatError as e:
            logger.warning("%s", e)

    async def _tell_what_is_lacking(self) -> None:
        """One line where systemd is older than what all of this was made for."""
        try:
            version = await self.scopes.manager_version()
        except CleatError as e:
            logger.warning("%s", e)
            return
        if texts := lacking(version):
            message = f"systemd {version} is older than {NEEDED}: {'; '.join(texts)}"
            journal.send(journal.Event.FEATURE_MISSING, message)

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._ended.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    def _reload(self) -> None:
        """SIGHUP: Type=notify-reload."""
        self.notify.reloading("reading the definitions")
        self._background.spawn(self._reconcile(announce=True))

    def _reload_by_itself(self) -> None:
        """A definition has changed. systemd did not ask, so it is only told the new status."""
        self._background.spawn(self._reconcile())

    async def _launched(self, first: asyncio.Task[None]) -> None:
        """Wait until the first plan is carried out so far that nothing is being launched: readiness may take long."""
        waits = {asyncio.create_task(event.wait()) for event in (self.agent.idle, self._ended)}
        await asyncio.wait({first, *waits}, timeout=_FIRST_RECONCILE_SEC, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _reconcile(self, *, announce: bool = False) -> None:
        try:
            async with self.notify.more_time():
                actions = await self.agent.reconcile()
            if announce:
                journal.send(journal.Event.AGENT_RELOADED, f"definitions read, {len(actions)} actions")
        except CleatError as e:
            journal.send(journal.Event.AGENT_RELOADED, "reload failed", error=e)
        except Exception as e:
            # The containers run on; the next reload may fare better.
            logger.exception("reading the definitions")
            journal.send(journal.Event.AGENT_RELOADED, f"reload failed: the agent met a fault of its own: {e!r}")
        finally:
            if announce:
                self.notify.ready(self._summary())
            # Much was read and started at once, and will not be again soon.
            release_memory()

    async def _watchdog(self) -> None:
        """WATCHDOG=1 out of the loop itself, so that a loop that hangs is noticed; the only timer of an idle agent."""
        usec = self.notify.watchdog_usec
        while usec:
            self.notify.watchdog()
            await asyncio.sleep(usec / 1e6 * _WATCHDOG_SHARE)

    def _summary(self) -> str:
        self._last_status = self.agent.summary()
        return self._last_status

    def _status_changed(self, supervisor: Supervisor) -> None:
        self.handles.changed(supervisor)
        self._status_due_soon()

    def _status_due_soon(self) -> None:
        if not self._status_due:
            self._status_due = True
            asyncio.get_running_loop().call_later(0.1, self._tell_status)

    def _tell_status(self) -> None:
        self._status_due = False
        before = self._last_status
        if self._summary() != before:
            self.notify.status(self._last_status)

    def _bus_lost(self) -> None:
        journal.send(journal.Event.BUS_LOST, "the D-Bus broker went away; containers run on, commands wait for it")

    async def _bus_back(self) -> None:
        await self.scopes.subscribe()
        await self.stops.watch()
        await self.handles.take_stock()
        journal.send(journal.Event.BUS_BACK, "connected to the D-Bus broker again")


async def _main() -> None:
    app = App()
    try:
        await app.run()
    except CleatError as e:
        app.notify.errno(getattr(e.__cause__, "errno", None) or errno.EIO, str(e))
        raise


def main() -> int:
    """Exit status 0 after a clean end, 1 with a message when the agent could not begin."""
    os.umask(0o022)
    # Everything loaded by now stays for ever: the collector need not look at it again, nor often at
    # the rest: every reload ends with a collection.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    journal.set_up_logging(logging.INFO)
    try:
        asyncio.run(_main())
    except CleatError as e:
        sys.stderr.write(f"cleat: {e}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as e:
        logger.exception("the agent met a fault of its own")
        journal.send(journal.Event.AGENT_FAILED, f"the agent ends: {e}; systemd starts it again, containers run on")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
