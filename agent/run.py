# SPDX-License-Identifier: Apache-2.0
"""`cleat run FILE`: one container in the foreground, without the agent, under the caller's own unit.

The second composition root beside daemon/app.py. The container has its scope as under the agent; the scope is bound to
the caller's unit, so it goes when that goes, even if this process is killed. sd_notify(3) goes to that unit's
NOTIFY_SOCKET: MAINPID= is conmon once, READY=1 comes as the definition's `notify` says; the unit's sockets (LISTEN_FDS)
are passed on. Output is the caller's own stdout and stderr, the exit code the container's.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent import cgroup
from agent import paths as all_paths
from agent.container import record as records
from agent.container.events import StopRequested
from agent.container.forward import Forward, is_journal
from agent.container.guard import Guard, clear_dead, clear_locked, lock, unlock
from agent.container.host import Host
from agent.container.outcome import Cause
from agent.container.running import Running
from agent.container.scope import FOREGROUND, container_name
from agent.container.supervisor import Supervisor
from agent.container.terminal import Terminal
from agent.definition.agent_config import load_config
from agent.definition.check import check, check_refused
from agent.definition.load import load_text
from agent.definition.model import Definition, Diagnostic, Log, LogDriver, Notify, Restart
from agent.errors import CleatError, DefinitionRejected, InvalidArgument
from agent.status import State
from agent.systemd.bus import Bus
from agent.systemd.fd_store import FdStore
from agent.systemd.notify import AgentNotify
from agent.systemd.passed_fds import take_listen_fds
from agent.systemd.scopes import Scopes

_SIZE_MAX = 1 << 20
_FAILED = 125


def load(file: str) -> Definition:
    """The definition in `file`, its stem the name. Raises DefinitionRejected with all that is wrong, line by line."""
    path = Path(file).absolute()
    try:
        with path.open("rb") as f:
            text = f.read(_SIZE_MAX + 1).decode()
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidArgument(f"cannot read {file}", why=str(e)) from e
    if len(text) > _SIZE_MAX:
        raise InvalidArgument(f"cannot read {file}", why="it is larger than 1 MiB")
    loaded = load_text(text, path.stem, os.fspath(path))
    definition = loaded.definitions.get(path.stem)
    if definition is None:
        config, _ = load_config(all_paths.here())
        found = [*loaded.diagnostics, *(d for refused in loaded.refused for d in check_refused(refused, config))]
        raise DefinitionRejected("\n".join(_errors(found)))
    return definition


def _errors(found: Sequence[Diagnostic]) -> list[str]:
    ordered = sorted(found, key=lambda each: (each.file, each.line, each.column))
    return [str(diagnostic) for diagnostic in ordered if not diagnostic.warning]


def in_foreground(definition: Definition) -> Definition:
    """The definition as it is run here: no restarts, output to the caller."""
    container = definition.container
    service = msgspec.structs.replace(container.service, restart=Restart.NO)
    log = container.log
    if log.driver is LogDriver.JOURNALD:
        # A terminal has no stdout and stderr of its own to pass on: it is joined to the caller's.
        log = Log(driver=LogDriver.NONE if container.terminal else LogDriver.PASSTHROUGH, tag=container.log.tag)
    changed = msgspec.structs.replace(container, service=service, log=log)
    return msgspec.structs.replace(definition, container=changed)


def apart(paths: all_paths.Paths) -> all_paths.Paths:
    """Folders that the agent does not look into, so that it leaves this container alone; the images are shared."""
    return dataclasses.replace(paths, runtime=paths.runtime / "foreground", overlays="overlay-foreground")


class Foreground:
    """Runs one container to its end."""

    _guard: Guard
    _forwards: Sequence[Forward] = ()
    _terminal: Terminal | None = None
    _told_ready = False

    def __init__(self, definition: Definition) -> None:
        passed = take_listen_fds()
        self.notify = AgentNotify()
        self.fd_store = FdStore(self.notify, passed)
        self.definition = in_foreground(definition)
        self.paths = apart(all_paths.here())
        self.config, _ = load_config(self.paths)
        self._told_main_pid = False
        self._text = ""

    async def run(self) -> int:
        """The container's exit code. Raises CleatError when it could not be run."""
        problems = _errors(check(self.definition, self.config))
        if problems:
            raise DefinitionRejected("\n".join(problems))
        bus = Bus(user=os.geteuid() != 0)
        await bus.connect()
        scopes = Scopes(bus, on_stop_requested=self._stop_requested)
        await scopes.subscribe()
        host = self._host(scopes)
        host.cgroup_root = await scopes.manager_cgroup()
        host.stdio = self._stdio()
        for folder in (self.paths.bundles, self.paths.records, self.paths.runtime / "runtime"):
            folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        await clear_dead(host)
        held = lock(host, self.definition.name)
        await self._guard.settle(scopes, self.definition.name)
        self.supervisor = Supervisor(host, self.definition, self._changed)
        self.supervisor.before_program = self._about_to_run
        self.supervisor.demand.open_sockets()
        self.supervisor.listening.pass_on(self.fd_store.borrow_rest())
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        self.supervisor.begin()
        await self.supervisor.stopped()
        for output in (*self._forwards, self._terminal):
            if output is not None:
                output.close()
        is_clean = not self.supervisor.last_id or not self.paths.bundle(self.supervisor.last_id).exists()
        if is_clean:
            records.remove(self.paths.records, self.supervisor.name)
        self.supervisor.listening.release()
        bus.close()
        unlock(host, self.definition.name, held)
        self._guard.dismiss(is_clean=is_clean)
        return self._exit_code()

    def _host(self, scopes: Scopes) -> Host:
        host = Host(self.paths, self.config, scopes, self.fd_store)
        host.scope_prefix, host.bound_to = FOREGROUND, own_unit()
        return host

    def _stdio(self) -> tuple[int, int]:
        """The container's stdout and stderr: the caller's own, or pipes to where the journal is the caller's."""
        stream = os.environ.get("JOURNAL_STREAM", "")
        found = [Forward(fd) if is_journal(fd, stream) else None for fd in (1, 2)]
        self._forwards = [forward for forward in found if forward is not None]
        out, err = (forward.write_end if forward else fd for fd, forward in zip((1, 2), found, strict=True))
        return out, err

    def guard(self) -> None:
        """Have somebody clean up should this process be killed. To be called before there is an event loop."""
        self._guard = Guard(self._clean_up)

    async def _clean_up(self, container_id: str) -> None:
        """In the guard; systemd ends the scope once its last process has."""
        host = self._host(Scopes(Bus(user=os.geteuid() != 0), on_stop_requested=lambda _: None))
        await clear_locked(host, self.definition.name, container_id)

    def _about_to_run(self, running: Running) -> None:
        """The container exists, its program does not run yet."""
        self._guard.watch(running.id)
        for forward in self._forwards:
            forward.handed_over()
        if self.definition.container.terminal:
            self._terminal = Terminal(self.paths.bundle(running.id))

    def _exit_code(self) -> int:
        last = self.supervisor.last
        if last is None:
            return _FAILED
        if last.error and last.cause is Cause.START_FAILED:
            raise _StartFailed(last.error, last.code)
        return last.code if 0 <= last.code <= 255 else _FAILED

    def _stop(self) -> None:
        self.notify.stopping()
        limit = self.definition.container.service.timeout_stop_sec
        self.notify.extend_timeout(int((limit + 15) * 1e6))
        self.supervisor.request_stop(StopRequested(limit))

    def _stop_requested(self, unit: str) -> None:
        if container_name(unit) == self.definition.name:
            self._stop()

    def _reload(self) -> None:
        running = self.supervisor.running
        signum = self.definition.container.service.reload_signal
        if running is not None and signum:
            running.payload.send_signal(signum)

    def _changed(self, supervisor: Supervisor) -> None:
        """Tell the caller's unit, as podman-run(1), --sdnotify has it."""
        mode = self.definition.container.service.notify
        if mode is Notify.IGNORE or supervisor.running is None:
            return
        if not self._told_main_pid and supervisor.state is State.RUNNING:
            self._told_main_pid = True
            ready = ["READY=1"] if supervisor.ready or mode is Notify.CONMON else []
            self._told_ready = bool(ready)
            self.notify.send(f"MAINPID={supervisor.running.conmon.pid}", *ready)
        elif supervisor.ready and self._told_main_pid and not self._told_ready:
            self._told_ready = True
            self.notify.ready()
        if supervisor.status_text != self._text:
            self._text = supervisor.status_text
            self.notify.status(self._text)


class _StartFailed(CleatError):
    """Carries the exit code of podman's kind: 125, 126, 127."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.status = code


def own_unit() -> str:
    """The unit this process belongs to, "" where it is in none that a scope could be bound to."""
    for part in reversed(cgroup.of_process(os.getpid()).split("/")):
        if part.endswith((".service", ".scope")):
            return part
    return ""


def main(file: str) -> int:
    """Exit code as podman-run(1): the container's own, or 125, 126, 127."""
    try:
        foreground = Foreground(load(file))
        foreground.guard()
        return asyncio.run(foreground.run())
    except _StartFailed as e:
        sys.stderr.write(f"cleat: {e.what}\n")
        return e.status
    except CleatError as e:
        sys.stderr.write(f"cleat: {e}\n")
        return max(e.exit_code, _FAILED)
