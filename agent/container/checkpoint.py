# SPDX-License-Identifier: Apache-2.0
"""Writing a running container to disk and letting it go on later, here or on another host (criu(8), podman-checkpoint).

A checkpoint is a folder: `image/` is criu's, `upper/` what the container had changed of its root, `config.json` its
spec and `checkpoint.json` what it is. Volumes and bind mounts are not part of it. An archive is a tar of the folder.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from agent import storage
from agent.container.host import Host
from agent.container.restore import Restore, criu_reason
from agent.container.running import Running
from agent.container.supervisor import Supervisor
from agent.errors import CleatError, InvalidArgument, InvalidState, RuntimeFailed, Unsupported
from agent.oci.features import Features
from agent.oci.runtime import CheckpointOptions
from agent.spawn import tool
from agent.status import State
from agent.systemd import journal

_FORMAT = 1
_ARCHIVE_TIMEOUT = 1800.0
_END_DEADLINE = 30.0
_META, _IMAGE, _UPPER, _WORK = "checkpoint.json", "image", "upper", "work"
_TAR = ("tar", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--sparse")


class CheckpointRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of the bus method Checkpoint. `export`: also write an archive there; `keep` criu's logs."""

    leave_running: bool = False
    tcp_established: bool = False
    keep: bool = False
    export: str = ""


class RestoreRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of the bus method Restore. `archive` ("import"): from there; `keep`: do not remove the checkpoint."""

    tcp_established: bool = False
    keep: bool = False
    archive: str = msgspec.field(name="import", default="")


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """checkpoint.json. `digest` is the definition's: another definition makes another spec, which criu cannot fill."""

    format: int
    name: str
    digest: str
    runtime: str
    has_upper: bool
    tcp_established: bool
    created_at: float


def parse_checkpoint(text: str) -> CheckpointRequest:
    """Raises InvalidArgument."""
    try:
        request = msgspec.json.decode(text, type=CheckpointRequest)
    except msgspec.MsgspecError as e:
        raise _unreadable("checkpoint", e) from e
    _require_path(request.export, "export")
    return request


def parse_restore(text: str) -> RestoreRequest:
    """Raises InvalidArgument."""
    try:
        request = msgspec.json.decode(text, type=RestoreRequest)
    except msgspec.MsgspecError as e:
        raise _unreadable("restore", e) from e
    _require_path(request.archive, "import")
    return request


def _unreadable(what: str, error: msgspec.MsgspecError) -> InvalidArgument:
    return InvalidArgument(f"the options of {what} cannot be read", why=str(error), hint="a JSON object")


def _require_path(path: str, key: str) -> None:
    if path and (not path.startswith("/") or "\0" in path):
        raise InvalidArgument(f"{path!r} is no absolute path", key=key, hint="begin it with a slash")


def folder_of(host: Host, name: str) -> Path:
    """Where a container's checkpoint is kept."""
    return host.paths.state / "checkpoints" / name


def _fresh_folder(host: Host, name: str) -> Path:
    """One in the making; no container's name begins with a dot."""
    folder = host.paths.state / "checkpoints" / f".{name}-{secrets.token_hex(8)}"
    try:
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700)
    except OSError as e:
        raise CleatError("a folder for the checkpoint cannot be made", file=str(folder), why=e.strerror or "") from e
    return folder


async def _require_criu(supervisor: Supervisor) -> Features:
    container = supervisor.definition.container
    _, features = await supervisor.host.runtime(container.runtime.name)
    if not features.checkpoint:
        raise Unsupported(
            "checkpoint and restore do not work here",
            container=supervisor.name,
            key="runtime.name",
            why=features.checkpoint_reason,
            hint="install criu, and a runtime that is built with it",
        )
    if container.terminal:
        raise Unsupported(
            "a container with a terminal cannot be checkpointed",
            container=supervisor.name,
            key="terminal",
            why="the other end of its terminal is outside of it",
            hint="set terminal = false",
        )
    return features


# Checkpoint


async def checkpoint(supervisor: Supervisor, request: CheckpointRequest) -> str:
    """Write the container to disk and, without `leave_running`, end it; it stays stopped. Returns the folder.

    Raises Unsupported without criu, InvalidState, or criu's reason: then the container runs on.
    """
    host, running = supervisor.host, supervisor.running
    if running is None or supervisor.state is not State.RUNNING:
        raise InvalidState(f"cannot checkpoint it: it is {supervisor.state}", container=supervisor.name)
    features = await _require_criu(supervisor)
    has_network = request.tcp_established or supervisor.definition.container.network.mode != "host"
    fresh = _fresh_folder(host, supervisor.name)
    has_failed = True
    try:
        await _dump(supervisor, running, fresh, request, features.network_lock if has_network else "")
        has_upper = await _take_upper(host, running, fresh, copy=request.leave_running)
        _describe(supervisor, running, fresh, request, has_upper=has_upper)
        if not request.keep:
            await storage.remove_tree(fresh / _WORK)
        await _put_in_place(fresh, folder_of(host, supervisor.name))
        has_failed = False
    finally:
        running.keep_root = False
        remains = [] if has_failed and request.keep else [fresh]
        await asyncio.shield(storage.remove_tree(*remains, *_orphan_root(host, running, supervisor)))
    journal.send(
        journal.Event.CHECKPOINTED,
        f"{supervisor.name} checkpointed",
        container=supervisor.name,
        container_id=running.id,
        unit=running.unit,
    )
    if request.export:
        await _export(host, folder_of(host, supervisor.name), request.export)
    return os.fspath(folder_of(host, supervisor.name))


async def _dump(
    supervisor: Supervisor, running: Running, fresh: Path, request: CheckpointRequest, network_lock: str
) -> None:
    for name in (_IMAGE, _WORK):
        (fresh / name).mkdir(mode=0o700)
    options = CheckpointOptions(
        image_path=os.fspath(fresh / _IMAGE),
        work_path=os.fspath(fresh / _WORK),
        leave_running=request.leave_running,
        tcp_established=request.tcp_established,
        file_locks=True,
        network_lock=network_lock,
    )
    wanted = supervisor.wanted
    if not request.leave_running:
        # Its end by criu is to be no reason to start it again, nor to remove what the checkpoint needs.
        supervisor.wanted = False
        running.keep_root = True
    try:
        await running.runtime.checkpoint(running.id, options, container=supervisor.name)
    except CleatError as e:
        if supervisor.running is running:
            supervisor.wanted = wanted
        raise _explained(e, fresh / _WORK / "dump.log", keep=request.keep) from e
    if not request.leave_running:
        try:
            async with asyncio.timeout(_END_DEADLINE):
                await supervisor.stopped()
        except TimeoutError as e:
            raise RuntimeFailed("did not end after its checkpoint", container=supervisor.name) from e


def _explained(error: CleatError, log: Path, *, keep: bool) -> CleatError:
    """The runtime's error with criu's own reason, and what to do where criu's library is missing."""
    if "libcriu" in error.why:
        return Unsupported(
            "checkpoints do not work here", container=error.container, why=error.why, hint="install libcriu2"
        )
    reason = criu_reason(log)
    if reason:
        error.why += f"; criu: {reason}"
        error.hint = "" if keep else "with --keep criu's log stays"
    if "iptables" in reason:
        error.hint = "install iptables"
    return error


async def _take_upper(host: Host, running: Running, fresh: Path, *, copy: bool) -> bool:
    """What the container changed of its root: moved, or copied when it goes on changing it."""
    upper = host.paths.overlay(running.id) / _UPPER
    if not upper.is_dir():
        return False
    if copy:
        await storage.copy_tree(upper, fresh / _UPPER, host.spawner)
    else:
        upper.rename(fresh / _UPPER)
    return True


def _orphan_root(host: Host, running: Running, supervisor: Supervisor) -> list[Path]:
    """The rest of the overlay of a run that is over."""
    return [] if supervisor.running is running else [host.paths.overlay(running.id)]


def _describe(
    supervisor: Supervisor, running: Running, fresh: Path, request: CheckpointRequest, *, has_upper: bool
) -> None:
    meta = Meta(
        format=_FORMAT,
        name=supervisor.name,
        digest=supervisor.definition.digest,
        runtime=running.runtime.name,
        has_upper=has_upper,
        tcp_established=request.tcp_established,
        created_at=time.time(),
    )
    (fresh / _META).write_bytes(msgspec.json.encode(meta))


async def _put_in_place(fresh: Path, target: Path) -> None:
    """An older checkpoint is replaced; one of the two is there at any moment but the last."""
    old = fresh.with_name(fresh.name + ".old")
    _swap(fresh, target, old)
    await storage.remove_tree(old)


def _swap(fresh: Path, target: Path, old: Path) -> None:
    with suppress(FileNotFoundError):
        target.rename(old)
    fresh.rename(target)


async def _export(host: Host, folder: Path, archive: str) -> None:
    part = f"{archive}.{secrets.token_hex(8)}"
    try:
        # It holds the memory of all processes.
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        await _tar(host, ["--create", "--file", part, "--directory", os.fspath(folder), "."], archive)
        os.rename(part, archive)
    except OSError as e:
        raise CleatError("the archive cannot be written", file=archive, why=e.strerror or str(e)) from e
    finally:
        await asyncio.shield(storage.remove_tree(Path(part)))


async def _tar(host: Host, arguments: list[str], archive: str) -> None:
    result = await tool.run([*_TAR, *arguments], timeout=_ARCHIVE_TIMEOUT, spawner=host.spawner)
    if result.returncode:
        raise CleatError("tar failed", file=archive, why=result.text[-500:])


# Restore


async def restore(supervisor: Supervisor, request: RestoreRequest) -> str:
    """Let a checkpointed container go on; it must be down. Returns its new id.

    Raises InvalidState without a checkpoint or with one of another definition, Unsupported, or criu's reason: then
    the container is down again and the checkpoint still there.
    """
    host, name = supervisor.host, supervisor.name
    if supervisor.is_active:
        raise InvalidState(f"cannot restore it: it is {supervisor.state}", container=name, hint=f"cleat stop {name}")
    await _require_criu(supervisor)
    folder = await _import(host, name, request.archive) if request.archive else folder_of(host, name)
    done = False
    try:
        meta = _read_meta(supervisor, folder)
        host.restores[name] = Restore(
            image=os.fspath(folder / _IMAGE),
            upper=os.fspath(folder / _UPPER) if meta.has_upper else "",
            options=("--tcp-established",) if request.tcp_established or meta.tcp_established else (),
        )
        try:
            await supervisor.start()
        except CleatError:
            # Not to be tried again, and above all not from the beginning.
            await supervisor.stop()
            raise
        done = True
    finally:
        host.restores.pop(name, None)
        if request.archive or (done and not request.keep):
            await asyncio.shield(storage.remove_tree(folder))
    journal.send(
        journal.Event.RESTORED,
        f"{name} restored",
        container=name,
        container_id=supervisor.last_id,
        unit=supervisor.unit,
    )
    return supervisor.last_id


def _require_file(archive: str) -> None:
    if not os.path.isfile(archive):
        raise InvalidArgument("there is no such archive", file=archive, key="import")


async def _import(host: Host, name: str, archive: str) -> Path:
    _require_file(archive)
    folder = _fresh_folder(host, name)
    try:
        arguments = ["--extract", "--same-owner", "--preserve-permissions", "--no-overwrite-dir"]
        await _tar(host, [*arguments, "--file", archive, "--directory", os.fspath(folder)], archive)
    except BaseException:
        await asyncio.shield(storage.remove_tree(folder))
        raise
    return folder


def _read_meta(supervisor: Supervisor, folder: Path) -> Meta:
    try:
        meta = msgspec.json.decode((folder / _META).read_bytes(), type=Meta)
    except FileNotFoundError as e:
        hint = f"cleat checkpoint {supervisor.name}"
        raise InvalidState("there is no checkpoint", container=supervisor.name, file=str(folder), hint=hint) from e
    except (OSError, msgspec.MsgspecError) as e:
        raise InvalidState(
            "the checkpoint cannot be read", container=supervisor.name, file=str(folder / _META), why=str(e)
        ) from e
    if meta.format != _FORMAT:
        raise Unsupported(
            f"the checkpoint has format {meta.format}", container=supervisor.name, hint="upgrade cleat on this host"
        )
    if meta.digest != supervisor.definition.digest:
        raise InvalidState(
            "the checkpoint is of another definition",
            container=supervisor.name,
            why=f"{meta.name} has been changed since, and criu needs the same mounts and settings",
            hint="put the old definition back, or start it afresh",
        )
    return meta
