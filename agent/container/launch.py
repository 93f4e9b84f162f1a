# SPDX-License-Identifier: Apache-2.0
"""Starting one container.

launch() is the whole start: each step's undo stands right behind it, so a failure or a stop half-way leaves nothing.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from agent import storage
from agent.conmon import command, monitor
from agent.conmon.monitor import Monitor, SyncMessage
from agent.container import bundle as bundles
from agent.container import cgroups, confinement, ended, scope
from agent.container.bundle import Bundle, Extras
from agent.container.gather import gather
from agent.container.host import Conmon, Host
from agent.container.placement import Placement, placement, require_possible, runtime_annotations
from agent.container.restore import criu_reason
from agent.container.running import Running, with_args
from agent.container.undo import undone_on_failure
from agent.definition.model import Container, Definition, LogDriver, Notify
from agent.errors import CleatError, ConmonFailed, DeadlineExceeded, RuntimeFailed
from agent.oci.runtime import Features, Runtime, error_from_text, read_oci_log
from agent.process import ProcessRef
from agent.systemd.stream import open_stream


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """What a start is given besides the definition: the sockets to pass on, in order."""

    listen_fds: tuple[int, ...] = ()
    listen_fdnames: tuple[str, ...] = ()


def log_path(host: Host, container: Container) -> str:
    """Where the container's output goes with the k8s-file driver, "" with any other."""
    if container.log.driver is not LogDriver.K8S_FILE:
        return ""
    return container.log.path or os.fspath(host.paths.logs / f"{container.name}.log")


def log_options(host: Host, container: Container, conmon: Conmon) -> command.LogOptions:
    """The definition's [log] for conmon; labels only where it knows them."""
    log = container.log
    path = log_path(host, container)
    if path:
        Path(path).parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    return command.LogOptions(
        driver=log.driver.value,
        path=path,
        size_max=log.size_max or host.config.log_size_max,
        tag=log.tag,
        labels=log.labels if conmon.has_log_labels else {},
    )


def conmon_command(
    host: Host,
    container: Container,
    bundle: Bundle,
    conmon: Conmon,
    runtime: Runtime,
    features: Features,
    listen_fds: int,
) -> command.Command:
    return command.Command(
        conmon=conmon.path,
        runtime=runtime.path,
        container_id=bundle.path.name,
        session=bundle.path.name,
        name=container.name,
        bundle=os.fspath(bundle.path),
        log=log_options(host, container, conmon),
        runtime_args=runtime.global_args,
        oci_log=features.log_json,
        preserve_fds=listen_fds,
        terminal=bundle.is_terminal,
        stdin=container.stdin and container.log.driver is not LogDriver.PASSTHROUGH,
        leave_stdin_open=True,
    )


async def launch(host: Host, definition: Definition, start: Start, on_created: Callable[[Running], None]) -> Running:
    """Start the container. `on_created` stores what is needed to find it again, before its program runs.

    Raises CleatError: the runtime's own words mapped to 125, 126 or 127, conmon's, systemd's, or a deadline.
    """
    container = definition.container
    container_id, unit = secrets.token_hex(32), scope.scope_name(container.name, host.scope_prefix)
    place = placement(host.cgroup_root, container.cgroup, container.name, container_id, unit)
    async with undone_on_failure() as undo:
        try:
            async with asyncio.timeout(host.config.create_timeout_sec):
                conmon = await host.conmon()
                runtime, features = await host.runtime(container.runtime.name)
                runtime = with_args(runtime, container.runtime, container.cgroup)
                require_possible(container, place, runtime=runtime.name, no_cgroups=features.no_cgroups)
                bundle = await _prepare(host, container, container_id, place, start, undo)
                restore = host.restores.pop(container.name, None)
                if restore is not None and restore.upper:
                    await storage.copy_tree(
                        Path(restore.upper), host.paths.overlay(container_id) / "upper", host.spawner
                    )
                argv = command.create_arguments(
                    conmon_command(host, container, bundle, conmon, runtime, features, len(start.listen_fds)),
                    command.CreateOptions(
                        systemd_cgroup=place.runtime_scope,
                        no_pivot=container.runtime.no_pivot,
                        exit_command=tuple(host.config.exit_command),
                        restore=restore.image if restore else "",
                        restore_opts=restore.options if restore else (),
                    ),
                )
                undo.push_async_callback(cgroups.remove, place)
                watcher = await _spawn(host, bundle, argv, runtime, start.listen_fds, container)
                undo.callback(watcher.close)
                undo.push_async_callback(cgroups.discard_units, host, place)
                undo.push_async_callback(watcher.reap)
                await cgroups.enter(host, container, place, watcher.process.pid, bundle.stop_signal)
                undo.push_async_callback(ended.delete, runtime, container_id)
                undo.push_async_callback(ended.kill_all, host, container_id, place)
                undo.push_async_callback(watcher.reap)
                watcher.release()
                await watcher.forked()
                payload_pid = _created(await watcher.message(), bundle, container)
                running = _identify(bundle, container_id, place, runtime, payload_pid)
                undo.callback(running.close)
                await cgroups.take_charge(host, container, place)
                undo.push_async_callback(cgroups.let_go, host, place)
                on_created(running)
                running.is_restored = restore is not None
                if not running.is_restored:  # a restored payload runs already
                    await runtime.start(container_id, container=container.name)
        except TimeoutError as e:
            limit = host.config.create_timeout_sec
            raise DeadlineExceeded(
                f"not created within {limit:g} s",
                container=container.name,
                hint=f"journalctl -u {unit} -t conmon",
            ) from e
        except OSError as e:
            if isinstance(e, CleatError):
                raise
            raise RuntimeFailed(
                "cannot be started",
                container=container.name,
                file=str(e.filename or ""),
                why=e.strerror or str(e),
            ) from e
    watcher.close()
    bundle.close()
    return running


async def _prepare(
    host: Host, container: Container, container_id: str, place: Placement, start: Start, undo: AsyncExitStack
) -> Bundle:
    path = host.paths.bundle(container_id)
    undo.push_async_callback(ended.remove, host, container_id)
    bundles.make_folder(path)
    gathered = await gather(host, container, path)
    undo.callback(gathered.close)
    extras = Extras(
        listen_fds=len(start.listen_fds),
        listen_fdnames=start.listen_fdnames,
        notify_folder=notify_folder(host, container, container_id),
        watchdog_usec=int(container.service.watchdog_sec * 1e6),
    )
    if extras.notify_folder:
        os.mkdir(extras.notify_folder, 0o755)
    bundle = bundles.prepare(host, container, container_id, place.cgroups_path, extras, gathered)
    found = runtime_annotations(container, place, stop_signal=bundle.stop_signal)
    if found:
        bundle.spec.setdefault("annotations", {}).update(found)
    confinement.tell_dropped(container, container_id)
    bundles.write_config(bundle)
    return bundle


def notify_folder(host: Host, container: Container, container_id: str) -> str:
    """The folder with the container's notify socket, "" where its payload is not listened to."""
    if container.service.notify is not Notify.CONTAINER:
        return ""
    return os.fspath(host.paths.bundle(container_id) / "notify")


async def _spawn(
    host: Host,
    bundle: Bundle,
    argv: Sequence[str],
    runtime: Runtime,
    listen_fds: Sequence[int],
    container: Container,
) -> Monitor:
    """Spawn conmon, inside a mount namespace with its own /dev/null and, where it has one, the container's overlay."""
    env = command.environment(host.conmon_environment, preserved=len(listen_fds))
    stdio = _passthrough(host, container)
    try:
        return await Monitor.spawn(
            host.spawner,
            argv,
            env,
            cover=confinement.cover_of(bundle.path),
            runtime=runtime.path,
            mounts=bundles.mounts_of(bundle),
            listen_fds=listen_fds,
            stdio=stdio,
            stdin=_stdin(host, container),
        )
    finally:
        for fd in set(stdio or ()):
            os.close(fd)


def _passthrough(host: Host, container: Container) -> tuple[int, int] | None:
    """A journal stream of the container's own for the passthrough driver."""
    if container.log.driver is not LogDriver.PASSTHROUGH:
        return None
    if host.stdio is not None:
        return os.dup(host.stdio[0]), os.dup(host.stdio[1])
    fd = open_stream(container.log.tag or container.name)
    return fd, fd


def _stdin(host: Host, container: Container) -> int:
    """The caller's own stdin for a container in the foreground that wants one; -1 = /dev/null."""
    is_direct = container.stdin and container.log.driver is LogDriver.PASSTHROUGH
    return 0 if is_direct and host.stdio is not None else -1


def _created(message: SyncMessage | None, bundle: Bundle, container: Container) -> int:
    """The payload's pid out of conmon's report. Raises the runtime's reason, its log before conmon's message."""
    if message is not None and message.data > 0:
        return message.data
    words = read_oci_log(os.fspath(bundle.path / "oci-log")) or (message.message if message else "")
    if not words:
        raise ConmonFailed("conmon ended without a word", container=container.name, hint="journalctl -t conmon; dmesg")
    error = error_from_text(words, container=container.name)
    reason = criu_reason(bundle.path / "restore.log")
    if reason:
        error.why += f"; criu: {reason}"
    raise error


def _identify(bundle: Bundle, container_id: str, place: Placement, runtime: Runtime, payload_pid: int) -> Running:
    """Turn pids into processes that can be told from later ones."""
    conmon = monitor.read_pid(f"{bundle.path}/conmon.pid")
    payload = ProcessRef.of(payload_pid)
    pidfd = conmon.open_pidfd() if conmon is not None else None
    if conmon is None or payload is None or pidfd is None:
        raise ConmonFailed("conmon or the created process ended before the start", hint="journalctl -t conmon")
    return Running(
        id=container_id,
        place=place,
        runtime=runtime,
        conmon=conmon,
        payload=payload,
        pidfd=pidfd,
        stop_signal=bundle.stop_signal,
    )
