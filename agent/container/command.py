# SPDX-License-Identifier: Apache-2.0
"""A command beside the payload: what was asked for, and the folder from which conmon and the runtime execute it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from agent import cgroup
from agent.conmon import command as conmon_command
from agent.container import rootless
from agent.container.host import Host
from agent.container.running import Running
from agent.definition.model import Container
from agent.errors import CleatError, ConmonFailed, InvalidArgument, InvalidState, ScopeFailed
from agent.oci import rootpath, users
from agent.oci.inputs import Identity
from agent.oci.process import ExecOptions, process_for_exec
from agent.oci.runtime import error_from_text, read_oci_log
from agent.process import ProcessRef
from agent.systemd.text import one_line

_SPEC_MAX = 4 << 20
_WORDS_MAX = 4096
_CELLS_MAX = 1000  # newer conmons ignore a resize beyond it

Word = Annotated[str, Meta(max_length=1 << 17)]
Cells = Annotated[int, Meta(ge=0, le=_CELLS_MAX)]


class ExecRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of the bus method Exec. `user` "" is the container's own; `detach`: no client waits for the end."""

    command: Annotated[tuple[Word, ...], Meta(min_length=1, max_length=_WORDS_MAX)]
    user: str = ""
    working_directory: str = ""
    environment: dict[str, str] = {}
    terminal: bool = False
    stdin: bool = False
    detach: bool = False
    capabilities_add: tuple[str, ...] = ()
    width: Cells = 0
    height: Cells = 0

    def options(self) -> ExecOptions:
        return ExecOptions(
            command=self.command,
            working_directory=self.working_directory,
            environment=self.environment,
            terminal=self.terminal,
            capabilities_add=self.capabilities_add,
            width=self.width,
            height=self.height,
        )


def parse_request(text: str) -> ExecRequest:
    """Read the JSON of an exec request strictly. Raises InvalidArgument with the key and what is wrong with it."""
    try:
        request = msgspec.json.decode(text, type=ExecRequest)
    except msgspec.MsgspecError as e:
        raise InvalidArgument("the options of exec cannot be read", why=str(e), hint="a JSON object") from e
    if not request.command[0]:
        raise InvalidArgument("the command is empty", key="command", hint="name a program")
    if any("\0" in word for word in request.command):
        raise InvalidArgument("an argument contains a NUL character", key="command")
    folder = request.working_directory
    if folder and (not folder.startswith("/") or "\0" in folder):
        raise InvalidArgument(f"{folder!r} is no absolute path", key="working_directory", hint="begin it with a slash")
    return request


class _Spec(msgspec.Struct):
    """The part of a config.json that matters here."""

    process: dict[str, Any]


def own_process(bundle: Path, container: str) -> dict[str, Any]:
    """The container's own process object, from the spec that it was created with. Raises CleatError."""
    path = bundle / "config.json"
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_SPEC_MAX), type=_Spec).process
    except (OSError, msgspec.MsgspecError) as e:
        raise InvalidState(
            "its spec cannot be read", container=container, file=os.fspath(path), why=str(e), hint="restart it"
        ) from e


def identity(running: Running, user: str, container: str) -> Identity | None:
    """Who `user` is inside the running container, None for its own user. Looked up now, by its files of now.

    Raises InvalidArgument for an unknown name, InvalidState when the container is just ending.
    """
    if not user:
        return None
    try:
        with rootpath.opened_root(f"/proc/{running.payload.pid}/root") as root:
            # Looked at with the root held: it is this container's, not that of a later process with its number.
            if running.payload.is_alive():
                return rootless.without_own_group(users.identity_in_root(root, user, container=container))
    except OSError as e:
        raise InvalidState("its root cannot be entered", container=container, why=e.strerror or str(e)) from e
    raise InvalidState("its first process has ended", container=container, hint=f"cleat status {container}")


class CommandFolder(msgspec.Struct, frozen=True):
    """The bundle of one exec session: `exec/SESSION` in the container's."""

    path: Path

    @property
    def session(self) -> str:
        return self.path.name

    @property
    def attach_socket(self) -> str:
        return os.fspath(self.path / "attach")

    @property
    def control(self) -> str:
        return os.fspath(self.path / "ctl")

    def write(self, name: str, data: bytes) -> None:
        """A new file in it. Raises OSError."""
        fd = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(data)

    def words(self, message: str = "") -> str:
        """Why the runtime failed: its log, else what conmon passed on."""
        return read_oci_log(self.path / "oci-log") or message

    def failure(self, message: str, container: str) -> CleatError:
        """The error of a command that could not be executed: 127, 126 or 125, in the runtime's words."""
        words, program = self.words(message), self._program()
        if not words:
            return ConmonFailed(
                f"{program} could not be executed and nobody said why",
                container=container,
                hint="journalctl -t conmon",
            )
        return error_from_text(words, container=container, what=f"{program} could not be executed")

    def _program(self) -> str:
        """As it was asked for; not every runtime names it."""
        try:
            args = msgspec.json.decode((self.path / "process.json").read_bytes())["args"]
            return one_line(str(args[0]))
        except (OSError, msgspec.DecodeError, LookupError, TypeError):
            return "the command"


def folder_of(host: Host, container_id: str, session: str) -> CommandFolder:
    return CommandFolder(host.paths.bundle(container_id) / "exec" / session)


def make_folder(host: Host, container_id: str, process: dict[str, Any]) -> CommandFolder:
    """A new session's folder with its process spec; only root may enter. Raises OSError."""
    folder = folder_of(host, container_id, secrets.token_hex(32))
    folder.path.parent.mkdir(mode=0o700, exist_ok=True)
    for path in (folder.path, folder.path / "exit", folder.path / "persist"):
        path.mkdir(mode=0o700)
    folder.write("process.json", msgspec.json.encode(process))
    return folder


def process_of(host: Host, container: Container, running: Running, request: ExecRequest) -> dict[str, Any]:
    """The OCI process object of a request. Raises InvalidArgument, InvalidState."""
    own = own_process(host.paths.bundle(running.id), container.name)
    return process_for_exec(own, request.options(), identity(running, request.user, container.name))


async def conmon_arguments(
    host: Host,
    container: Container,
    running: Running,
    folder: CommandFolder,
    *,
    attach: bool,
    terminal: bool = False,
    stdin: bool = False,
    runtime_opts: tuple[str, ...] = (),
) -> list[str]:
    """conmon's argv for one command. Nothing is logged: what a command says is its client's, not the container's."""
    conmon = await host.conmon()
    _, features = await host.runtime(container.runtime.name)
    call = conmon_command.Command(
        conmon=conmon.path,
        runtime=running.runtime.path,
        container_id=running.id,
        session=folder.session,
        name=container.name,
        bundle=os.fspath(folder.path),
        log=conmon_command.LogOptions(driver="none" if attach else "passthrough"),
        runtime_args=running.runtime.global_args,
        runtime_opts=runtime_opts,
        oci_log=features.log_json,
        terminal=terminal,
        stdin=stdin,
    )
    return conmon_command.exec_arguments(call, os.fspath(folder.path / "process.json"), attach=attach)


def place_conmon(running: Running, pid: int) -> None:
    """Move a session's conmon beside the container's own and see it there. Raises ScopeFailed.

    One that has ended already is let pass: why, is told to who waits for it.
    """
    why = ""
    try:
        cgroup.move(running.supervisor_cgroup, pid)
    except ScopeFailed as e:
        why = e.why
    found = cgroup.of_process(pid)
    if found and not cgroup.contains(running.supervisor_cgroup, pid):
        raise ScopeFailed(f"conmon {pid} is not in {running.supervisor_cgroup} but in {found}", why=why)


def command_process(running: Running, pid: int) -> ProcessRef | None:
    """The process that conmon reported, if it is (still) one of the container's."""
    found = ProcessRef.of(pid)
    return found if found is not None and cgroup.contains(running.payload_cgroup, pid) else None
