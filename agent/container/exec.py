# SPDX-License-Identifier: Apache-2.0
"""Executing a command in a running container: one conmon and one `runtime exec` for each.

conmon reads its start pipe once before it forks and, where clients may attach, once more before the runtime runs; a
closed pipe counts as a go both times (conmon's src/conmon.c). So a command that is not to run needs its conmon killed
before the pipe is closed; conmon's fork dies with it (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from agent import cgroup, storage
from agent.conmon import command as conmon_command
from agent.conmon import monitor as conmon
from agent.conmon.monitor import Monitor
from agent.container import command, confinement
from agent.container.cgroups import kill_and_see_gone
from agent.container.command import CommandFolder, ExecRequest
from agent.container.hangup import in_session
from agent.container.host import Host
from agent.container.running import Running
from agent.definition.model import Container
from agent.errors import CleatError, ConmonLost, DeadlineExceeded, InvalidState
from agent.oci.process import ExecOptions, process_for_exec
from agent.process import ProcessRef, pidfd_ready

OUTPUT_MAX = 4096
_CHUNK = 65536
_PREPARE_DEADLINE = 30.0
_END_DEADLINE = 5.0
_SHUTDOWN_DEADLINE_MSEC = 1000
_UNKNOWN = -1


class Execution:
    """One command: prepare(), begin(), follow(), and end() in every case."""

    def __init__(self, host: Host, container: Container, running: Running, folder: CommandFolder) -> None:
        self.folder = folder
        self.command: ProcessRef | None = None
        self._session = 0
        self._host = host
        self._container = container
        self._running = running
        self._monitor: Monitor | None = None
        self._conmon: ProcessRef | None = None
        self._pidfd = -1

    async def prepare(
        self,
        *,
        terminal: bool = False,
        stdin: bool = False,
        output: int = -1,
        runtime_opts: tuple[str, ...] = (),
    ) -> None:
        """Have conmon ready. With `output` it writes there and nobody can attach; else its attach socket is there.

        Raises CleatError; end() is still the caller's to call then.
        """
        attach = output < 0
        argv = await command.conmon_arguments(
            self._host,
            self._container,
            self._running,
            self.folder,
            attach=attach,
            terminal=terminal,
            stdin=stdin,
            runtime_opts=runtime_opts,
        )
        env = conmon_command.environment(self._host.conmon_environment, preserved=0, attach=attach)
        started = await Monitor.spawn(
            self._host.spawner,
            argv,
            env,
            cover=confinement.cover_of(self.folder.path),
            runtime=self._running.runtime.path,
            stdio=None if attach else (output, output),
            attach=attach,
        )
        self._monitor = started
        command.place_conmon(self._running, started.process.pid)
        if not attach:
            return
        try:
            async with asyncio.timeout(_PREPARE_DEADLINE):
                await self._fork()
                await started.attach_ready()
        except TimeoutError as e:
            raise self._late("conmon was not ready", _PREPARE_DEADLINE) from e

    async def _fork(self) -> None:
        """The first byte: conmon forks, and the fork can be told from other processes."""
        assert self._monitor is not None
        self._monitor.release()
        await self._monitor.forked()
        self.adopt()

    def adopt(self) -> bool:
        """Find conmon by its pid file; False when it is gone."""
        self._conmon = conmon.read_pid(os.fspath(self.folder.path / "conmon.pid"))
        pidfd = self._conmon.open_pidfd() if self._conmon is not None else None
        self._pidfd = -1 if pidfd is None else pidfd
        return pidfd is not None

    def adopt_command(self) -> None:
        """Find the command by the runtime's pid file: for a session of a former agent."""
        found = conmon.read_pid(os.fspath(self.folder.path / "pidfile"))
        if found is not None:
            self._found(found.pid)

    async def begin(self) -> None:
        """Let the command run. Raises the runtime's reason: CommandNotFound, CommandNotExecutable, ..."""
        assert self._monitor is not None
        limit = self._host.config.create_timeout_sec
        try:
            async with asyncio.timeout(limit):
                if self._pidfd < 0:
                    await self._fork()
                else:
                    self._monitor.release()
                message = await self._monitor.message()
        except TimeoutError as e:
            raise self._late("the command did not begin", limit) from e
        # An end of file before any message is what conmon 2.2.0 and 2.2.1 make of a runtime that failed.
        if message is None or message.data <= 0:
            raise self.folder.failure(message.message if message else "", self._container.name)
        self._found(message.data)

    def _found(self, pid: int) -> None:
        self.command = command.command_process(self._running, pid)
        self._session = self.command.session() if self.command is not None else 0

    async def follow(self) -> int:
        """Wait for the end: 0-255, 128+n for signal n. Raises ConmonLost when nobody can tell."""
        message = await self._monitor.message() if self._monitor is not None else None
        if message is not None and message.data >= 0:
            return message.data
        if self._pidfd >= 0:
            await pidfd_ready(self._pidfd)
        found = conmon.read_exit_file(os.fspath(self.folder.path / "exit"), self._running.id)
        code = found.code if found is not None else _UNKNOWN
        if code >= 0:
            return code
        self.kill_command()
        raise ConmonLost(
            "the end of the command is not known",
            container=self._container.name,
            why="its conmon ended without telling; the command was killed",
        )

    def send_signal(self, signum: int) -> None:
        """To the command's first process. Raises InvalidState when it has ended."""
        if self.command is None or not self.command.send_signal(signum):
            raise InvalidState("the command has ended", container=self._container.name)

    def kill_command(self) -> None:
        """SIGKILL to the command and to those of its children that are still in its session (setsid(2))."""
        if self.command is None:
            return
        for member in in_session(self._running, self._session):
            with suppress(OSError):
                member.send_signal(signal.SIGKILL)
        self.command.send_signal(signal.SIGKILL)

    def kill_conmon(self) -> None:
        """End conmon, and with it a command that has not begun."""
        if self._monitor is not None:
            self._monitor.process.kill()
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def abandon(self) -> None:
        """The agent ends while the command waits: see conmon dead before the pipes close. Blocks, but not for long."""
        self.kill_conmon()
        if self._pidfd >= 0:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            poll.poll(_SHUTDOWN_DEADLINE_MSEC)
        self._close()

    async def end(self, *, patience: float = 0.0) -> None:
        """Leave nothing: conmon (after `patience` seconds by force), pipes, folder."""
        try:
            if self._monitor is not None and self._pidfd < 0:
                await self._monitor.reap()
                self.adopt()
            if self._pidfd >= 0:
                await self._see_conmon_end(patience)
            if self._monitor is not None:
                await self._monitor.process.reap()
        finally:
            self._close()

    async def _see_conmon_end(self, patience: float) -> None:
        if patience > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await pidfd_ready(self._pidfd)
                return
        self.kill_conmon()
        with suppress(DeadlineExceeded):
            await conmon.wait_ended(self._pidfd, deadline=_END_DEADLINE)

    def _close(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        storage.remove_small_tree(self.folder.path)

    def _late(self, what: str, limit: float) -> DeadlineExceeded:
        hint = "journalctl -t conmon"
        return DeadlineExceeded(f"{what} within {limit:g} s", container=self._container.name, hint=hint)


def make(host: Host, container: Container, running: Running, request: ExecRequest) -> Execution:
    """A command that is not prepared yet, with its folder. Raises CleatError."""
    process = command.process_of(host, container, running, request)
    return Execution(host, container, running, _folder(host, container, running, process))


def _folder(host: Host, container: Container, running: Running, process: dict[str, object]) -> CommandFolder:
    try:
        return command.make_folder(host, running.id, process)
    except OSError as e:
        raise CleatError(
            "a folder for the command cannot be made",
            container=container.name,
            file=str(e.filename or ""),
            why=e.strerror or str(e),
        ) from e


class _Output:
    """The first OUTPUT_MAX bytes out of a pipe; the rest is read and dropped, so that nobody has to wait."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._fd, self.write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._fd, False)
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def _read(self) -> bool:
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return False
        self.data += data[: OUTPUT_MAX - len(self.data)]
        if not data:
            asyncio.get_running_loop().remove_reader(self._fd)
        return bool(data)

    def hand_over(self) -> None:
        os.close(self.write_end)
        self.write_end = -1

    def close(self) -> None:
        """Take what is there: a child of the command may hold the pipe for ever, and write to it for ever too."""
        if len(self.data) < OUTPUT_MAX:
            self._read()
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        if self.write_end >= 0:
            self.hand_over()


@contextmanager
def _own_cgroup(running: Running, session: str) -> Iterator[str]:
    """A cgroup below the payload's for one command, to end it with all that came of it; "" where there is none."""
    path = f"{running.payload_cgroup}/exec-{session[:16]}"
    if not running.place.delegated:
        path = ""
    else:
        try:
            os.mkdir(cgroup.directory(path), 0o755)
        except OSError:
            path = ""
    try:
        yield path
    finally:
        if path:
            cgroup.remove(path)


async def run_command(
    host: Host,
    container: Container,
    running: Running,
    argv: Sequence[str],
    timeout: float,  # noqa: ASYNC109 what it means is said below
) -> tuple[int, bytes]:
    """Run a command of the agent's own (a health check) as the container's user, without a trace in the journal.

    Returns its exit code and the first OUTPUT_MAX bytes of stdout and stderr. After `timeout` seconds it is killed
    with all its children and DeadlineExceeded raised, with its output so far. Raises CleatError when it cannot run.
    """
    own = command.own_process(host.paths.bundle(running.id), container.name)
    process = process_for_exec(own, ExecOptions(command=tuple(argv)), None)
    execution = Execution(host, container, running, _folder(host, container, running, process))
    output = _Output()
    ended = False
    with _own_cgroup(running, execution.folder.session) as group:
        opts = (f"--cgroup={group.rpartition('/')[2]}",) if group else ()
        try:
            async with asyncio.timeout(timeout):
                await execution.prepare(output=output.write_end, runtime_opts=opts)
                await execution.begin()
                output.hand_over()
                code = await execution.follow()
            ended = True
        except TimeoutError as e:
            words = bytes(output.data).decode(errors="replace").strip()
            raise DeadlineExceeded(
                f"{argv[0]} did not end within {timeout:g} s", container=container.name, key="command", why=words
            ) from e
        finally:
            try:
                await asyncio.shield(_finish(execution, group, killed=not ended))
            finally:
                output.close()
        return code, bytes(output.data)


async def _finish(execution: Execution, group: str, *, killed: bool) -> None:
    """Leave nothing of a command of the agent's own; when it is `killed`, nothing of its children either."""
    if killed:
        execution.kill_command()
        if group:
            await kill_and_see_gone(group)
    await execution.end(patience=0.0 if killed else _END_DEADLINE)
