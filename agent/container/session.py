# SPDX-License-Identifier: Apache-2.0
"""An exec session: a command that a client asked for, from its creation to the moment its exit code is known.

It waits until its client has connected to the attach socket and says go. A session that nobody starts ends by itself,
and so does one whose container ends. What a later agent needs to find it again is in its folder.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

import msgspec

from agent.background import completed
from agent.conmon.monitor import read_exit_file
from agent.container import command
from agent.container.command import ExecRequest
from agent.container.exec import Execution, make
from agent.container.hangup import hang_up
from agent.container.host import Host
from agent.container.running import Running
from agent.definition.model import Container
from agent.errors import CleatError, DeadlineExceeded, InvalidState
from agent.process import ProcessRef
from agent.systemd import journal

START_DEADLINE = 60.0
RESULT_KEPT_SEC = 60.0
_END_PATIENCE = 2.0
_STATE_FILE = "session.json"
_STARTED_FILE = "started"


class Phase(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


class _Stored(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of a session beyond its processes."""

    owner: int
    program: str
    detach: bool = False
    terminal: bool = False


class Session:
    """`owner` is the uid that made it. `on_gone` is called when nothing of it is left to ask for."""

    def __init__(
        self,
        container: Container,
        running: Running,
        execution: Execution,
        stored: _Stored,
        on_gone: Callable[[Session], None],
    ) -> None:
        self.container = container.name
        self.container_id = running.id
        self.owner = stored.owner
        self.phase = Phase.WAITING
        self._running = running
        self._execution = execution
        self._stored = stored
        self._on_gone = on_gone
        self._task: asyncio.Task[None] | None = None
        self._result: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiters = 0
        self._client_fd = -1
        self._hanging_up: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return self._execution.folder.session

    @property
    def attach_socket(self) -> str:
        return self._execution.folder.attach_socket

    @property
    def control(self) -> str:
        return self._execution.folder.control

    async def start(self, client: ProcessRef | None) -> None:
        """Let the command begin; returns when it has. When it cannot, the session is gone and the reason raised.

        A command that is not detached is ended when the process `client` is gone.
        """
        if self.phase is not Phase.WAITING or self._task is None or self._task.cancelling():
            raise InvalidState(f"the session is {self.phase} already", container=self.container)
        self.phase = Phase.RUNNING
        await self._stop_task()
        try:
            self._execution.folder.write(_STARTED_FILE, msgspec.json.encode(client))
            await self._execution.begin()
        except (CleatError, OSError) as e:
            error = e if isinstance(e, CleatError) else CleatError("the command cannot begin", why=str(e))
            await self._execution.end()
            self._settle(error)
            self._on_gone(self)
            raise error from e
        self._tell(f"{self._stored.program} executed in {self.container}")
        self._task = asyncio.create_task(self._follow(), name=f"exec {self.id[:12]}")
        self._watch_client(client)

    async def wait(self) -> int:
        """The exit code. Afterwards the session is gone. Raises ConmonLost, or why it was not started."""
        self._waiters += 1
        try:
            return await asyncio.shield(self._result)
        finally:
            self._waiters -= 1
            if self._result.done():
                self._on_gone(self)

    async def kill(self, signum: int) -> None:
        """Signal the command; one that has not begun is taken back. Raises InvalidState when it has ended."""
        if self.phase is Phase.WAITING:
            await self.take_back(f"signal {signum} came before the start")
        elif self.phase is Phase.ENDED:
            raise InvalidState("the command has ended", container=self.container)
        else:
            self._execution.send_signal(signum)

    async def take_back(self, why: str) -> None:
        """End a session that has not begun."""
        if self.phase is not Phase.WAITING:
            return
        self.phase = Phase.ENDED
        await self._stop_task()
        await self._execution.end()
        self._settle(InvalidState(f"the session was taken back: {why}", container=self.container))
        self._on_gone(self)

    async def container_ended(self) -> None:
        """The container is gone, and the command with it; conmon may need a moment to say so."""
        if self.phase is Phase.WAITING:
            await self.take_back("the container ended")
        elif self._task is not None:
            await asyncio.wait({self._task}, timeout=_END_PATIENCE)
            self._execution.kill_conmon()

    # Its task: waiting for the start, then for the end

    def begin_waiting(self) -> None:
        self._task = asyncio.create_task(self._wait_for_start(), name=f"exec {self.id[:12]}")

    async def _wait_for_start(self) -> None:
        try:
            await asyncio.sleep(START_DEADLINE)
        except asyncio.CancelledError:
            if self.phase is Phase.WAITING:
                self._execution.abandon()
            raise
        self._task = None
        error = DeadlineExceeded(f"not started within {START_DEADLINE:g} s", container=self.container)
        self.phase = Phase.ENDED
        await self._execution.end()
        self._settle(error)
        self._on_gone(self)

    async def _stop_task(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _follow(self) -> None:
        error: CleatError | None = None
        code = 0
        try:
            code = await self._execution.follow()
        except CleatError as e:
            error = e
        await self._execution.end(patience=_END_PATIENCE)
        self.phase = Phase.ENDED
        self._forget_client()
        self._settle(error, code)
        if self._stored.detach:
            self._tell(
                f"{self._stored.program} ended in {self.container}", exit_code=None if error else code, error=error
            )
            self._on_gone(self)
        elif not self._waiters:
            asyncio.get_running_loop().call_later(RESULT_KEPT_SEC, self._on_gone, self)

    def _settle(self, error: CleatError | None, code: int = 0) -> None:
        if self._result.done():
            return
        if error is None:
            self._result.set_result(code)
        else:
            self._result.set_exception(error)
            self._result.exception()  # nobody needs to ask

    def _tell(self, message: str, *, exit_code: int | None = None, error: CleatError | None = None) -> None:
        journal.send(
            journal.Event.EXEC,
            message,
            container=self.container,
            container_id=self.container_id,
            unit=self._running.unit,
            exit_code=exit_code,
            error=error,
            CLEAT_SESSION=self.id,
            CLEAT_UID=self.owner,
        )

    # Its client, by the process: that outlives connections to the bus, and the agent

    def _watch_client(self, client: ProcessRef | None) -> None:
        if client is None or self._stored.detach or self.phase is not Phase.RUNNING:
            return
        pidfd = client.open_pidfd()
        if pidfd is None:
            self._hang_up()
        else:
            self._client_fd = pidfd
            asyncio.get_running_loop().add_reader(pidfd, self._client_gone)

    def _client_gone(self) -> None:
        self._forget_client()
        self._hang_up()

    def _forget_client(self) -> None:
        if self._client_fd >= 0:
            asyncio.get_running_loop().remove_reader(self._client_fd)
            os.close(self._client_fd)
            self._client_fd = -1

    def _hang_up(self) -> None:
        command, terminal = self._execution.command, self._stored.terminal
        if command is not None and self.phase is Phase.RUNNING:
            self._tell(f"{self._stored.program} in {self.container} is ended: its client is gone")
            work = hang_up(self._running, command, terminal=terminal)
            self._hanging_up = asyncio.create_task(work, name=f"exec {self.id[:12]} hangup")

    # Over the agent's restart

    def resume(self) -> bool:
        """Follow a command that a former agent started, or take its exit code; False when nothing is left of it."""
        folder = self._execution.folder.path
        has_ended = read_exit_file(os.fspath(folder / "exit"), self.container_id) is not None
        if not self._execution.adopt() and not has_ended:
            return False
        self._execution.adopt_command()
        self.phase = Phase.RUNNING
        self._task = asyncio.create_task(self._follow(), name=f"exec {self.id[:12]}")
        self._watch_client(_read_client(folder))
        return True

    async def clear(self) -> None:
        """Remove what a former agent left of a session that was not started, or whose conmon is gone."""
        self._execution.adopt()
        self._execution.adopt_command()
        self._execution.kill_command()
        await self._execution.end()


async def create(
    host: Host,
    container: Container,
    running: Running,
    request: ExecRequest,
    owner: int,
    on_gone: Callable[[Session], None],
) -> Session:
    """A session that waits for its start, its attach socket being there. Raises CleatError and leaves nothing then."""
    execution = make(host, container, running, request)
    stored = _Stored(owner, os.path.basename(request.command[0]), request.detach, request.terminal)
    try:
        execution.folder.write(_STATE_FILE, msgspec.json.encode(stored))
        await execution.prepare(terminal=request.terminal, stdin=request.stdin and not request.detach)
    except BaseException:
        await completed(asyncio.create_task(execution.end()))
        raise
    session = Session(container, running, execution, stored, on_gone)
    session.begin_waiting()
    return session


def find_left(
    host: Host, container: Container, running: Running, on_gone: Callable[[Session], None]
) -> list[tuple[Session, bool]]:
    """The sessions that a former agent left in this container, each with whether its command was started."""
    folder = host.paths.bundle(running.id) / "exec"
    found: list[tuple[Session, bool]] = []
    with suppress(FileNotFoundError):
        for entry in sorted(os.listdir(folder)):
            execution = Execution(host, container, running, command.folder_of(host, running.id, entry))
            stored = _read_stored(execution.folder.path)
            session = Session(container, running, execution, stored or _Stored(0, ""), on_gone)
            found.append((session, stored is not None and Path(folder, entry, _STARTED_FILE).exists()))
    return found


def _read_stored(folder: Path) -> _Stored | None:
    try:
        return msgspec.json.decode((folder / _STATE_FILE).read_bytes(), type=_Stored)
    except (OSError, msgspec.MsgspecError):
        return None


def _read_client(folder: Path) -> ProcessRef | None:
    try:
        return msgspec.json.decode((folder / _STARTED_FILE).read_bytes(), type=ProcessRef | None)
    except (OSError, msgspec.MsgspecError):
        return None
