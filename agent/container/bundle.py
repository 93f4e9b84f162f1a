# SPDX-License-Identifier: Apache-2.0
"""The bundle of one incarnation: its folder, root, spec. Everything of a run that is a file lies below it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec

from agent import storage
from agent.container import mounts
from agent.container.host import Host
from agent.definition.model import CgroupMode, Container
from agent.errors import CleatError, CommandNotFound, DefinitionRejected
from agent.oci import capabilities, seccomp, spec, users
from agent.oci.inputs import Identity, SpecInputs

_CONFIG_MAX = 4 << 20


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """What the launch needs to know of a prepared bundle. `lower` is not empty where an overlay is to be mounted."""

    path: Path
    spec: dict[str, Any]
    lower: tuple[str, ...] = ()
    overlay: Path | None = None
    stop_signal: int = 15

    @property
    def root(self) -> str:
        return os.fspath(self.path / "rootfs")

    @property
    def is_terminal(self) -> bool:
        return bool(self.spec.get("process", {}).get("terminal"))


class Extras(msgspec.Struct, frozen=True, kw_only=True):
    """What the rest of a start hands in: passed sockets, the notify folder, credentials."""

    listen_fds: int = 0
    listen_fdnames: tuple[str, ...] = ()
    notify_folder: str = ""
    watchdog_usec: int = 0
    credentials_folder: str = ""


def make_folder(path: Path) -> None:
    """The folder itself, with those that conmon wants to find. Entered by root only; mapped roots get x later."""
    for folder in (path, path / "exit", path / "persist"):
        folder.mkdir(mode=0o700)


def prepare(host: Host, container: Container, container_id: str, cgroup_path: str, extras: Extras) -> Bundle:
    """Resolve root, user, mounts and seccomp, and compose the spec. The folder exists already. Raises CleatError."""
    path = host.paths.bundle(container_id)
    if container.bundle:
        return _from_bundle(host, container, container_id, cgroup_path, extras)
    lower = os.path.realpath(container.rootfs)
    if not os.path.isdir(lower):
        raise CommandNotFound(
            f"{container.rootfs} is not a folder",
            container=container.name,
            key="rootfs",
            hint="create it, or mend the path",
        )
    writable = container.rootfs_writable
    root = lower if writable else os.fspath(path / "rootfs")
    identity = users.identity_in_root(lower, container.user, container.groups, container=container.name)
    inputs = _inputs(host, container, container_id, cgroup_path, extras, root=root, identity=identity)
    return Bundle(
        path=path,
        spec=spec.build(container, inputs),
        lower=() if writable else (lower,),
        overlay=None if writable else host.paths.overlay(container_id),
        stop_signal=container.service.kill_signal,
    )


def _inputs(
    host: Host,
    container: Container,
    container_id: str,
    cgroup_path: str,
    extras: Extras,
    *,
    root: str,
    identity: Identity,
) -> SpecInputs:
    name = container.hostname or container.name.partition("@")[0]
    small = mounts.small_files(container, name, host.paths.bundle(container_id))
    bounding = capabilities.effective_bounding(container.security, None)
    return SpecInputs(
        container_id=container_id,
        root_path=root,
        cgroups_path="" if container.cgroup.mode is CgroupMode.DISABLED else cgroup_path,
        cgroup_namespace=container.cgroup.mode is not CgroupMode.DISABLED,
        identity=identity,
        seccomp=None if container.security.privileged else seccomp.load(container.security.seccomp_profile, bounding),
        listen_fds=extras.listen_fds,
        listen_fdnames=extras.listen_fdnames,
        notify_socket_dir=extras.notify_folder,
        watchdog_usec=extras.watchdog_usec,
        credentials_dir=extras.credentials_folder,
        extra_mounts=tuple(small + mounts.all_mounts(mounts.sources(container, host.paths))),
        hostname=name,
        localtime=_localtime(container),
    )


def _localtime(container: Container) -> str:
    if not container.timezone:
        return ""
    path = "/etc/localtime" if container.timezone == "local" else f"/usr/share/zoneinfo/{container.timezone}"
    path = os.path.realpath(path)
    if not os.path.isfile(path):
        raise DefinitionRejected(
            f"no time zone {container.timezone!r} on this host",
            container=container.name,
            key="timezone",
            hint="install tzdata; timedatectl list-timezones",
        )
    return path


def _from_bundle(host: Host, container: Container, container_id: str, cgroup_path: str, extras: Extras) -> Bundle:
    source = Path(container.bundle) / "config.json"
    try:
        with source.open("rb") as f:
            config = json.loads(f.read(_CONFIG_MAX))
    except (OSError, ValueError) as e:
        raise CleatError(
            "the bundle's config.json cannot be read",
            container=container.name,
            key="bundle",
            file=str(source),
            why=str(e),
        ) from e
    own_root = config.get("root") if isinstance(config, dict) else None
    relative = own_root.get("path", "rootfs") if isinstance(own_root, dict) else "rootfs"
    root = os.path.realpath(os.path.join(container.bundle, str(relative)))
    inputs = _inputs(host, container, container_id, cgroup_path, extras, root=root, identity=Identity())
    inputs = msgspec.structs.replace(
        inputs, extra_mounts=tuple(mounts.all_mounts(mounts.sources(container, host.paths)))
    )
    return Bundle(
        path=host.paths.bundle(container_id),
        spec=spec.from_bundle(config, container, inputs),
        stop_signal=container.service.kill_signal,
    )


def write_config(bundle: Bundle) -> None:
    """Write config.json. Raises OSError."""
    fd = os.open(bundle.path / "config.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as f:
        f.write(msgspec.json.encode(bundle.spec))


def mount_root(bundle: Bundle) -> None:
    """Put the overlay in place; inside storage.private_mounts(), right before conmon is spawned. Raises CleatError."""
    assert bundle.overlay is not None
    upper, work = storage.prepare_overlay(bundle.overlay, like=bundle.lower[0])
    os.mkdir(bundle.root, 0o755)
    storage.mount_overlay(bundle.lower, upper, work, bundle.root)
