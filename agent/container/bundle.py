# SPDX-License-Identifier: Apache-2.0
"""The bundle of one incarnation: its folder, root, spec. Everything of a run that is a file lies below it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import msgspec

from agent import files
from agent.container import confinement, mounts, rootless
from agent.container.credentials import Secrets
from agent.container.gather import Gathered
from agent.container.host import Host
from agent.definition.model import CgroupMode, Container
from agent.errors import CleatError, DefinitionRejected, Unsupported
from agent.oci import capabilities, devices, idmap, seccomp, spec, users
from agent.oci import host as oci_host
from agent.oci.idmap import Mappings
from agent.oci.inputs import Device, Identity, SpecInputs
from agent.oci.labels import Labels
from agent.spawn.request import Mount, Overlay, Shifted

_CONFIG_MAX = 4 << 20
_CREDENTIALS = "credentials"
# All of them linked statically: they run in the container's root.
_INITS = (
    "/usr/libexec/podman/catatonit",
    "/usr/bin/catatonit",
    "/usr/libexec/catatonit",
    "/usr/bin/tini-static",
)
_ZONES = "/usr/share/zoneinfo"


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """What the launch needs to know of a prepared bundle.

    `lower` is not empty where mounts_of() has something to mount; `overlay` is set where that includes an overlay.
    `gathered` keeps fds open that the spec names.
    """

    path: Path
    spec: dict[str, Any]
    lower: tuple[str, ...] = ()
    overlay: Path | None = None
    stop_signal: int = 15
    gathered: Gathered | None = None

    def close(self) -> None:
        """Close fds that the spec names; nobody needs them once the container is created."""
        if self.gathered is not None:
            self.gathered.close()

    @property
    def root(self) -> str:
        return f"{self.path}/rootfs"

    @property
    def is_terminal(self) -> bool:
        return bool(self.spec.get("process", {}).get("terminal"))


class Extras(msgspec.Struct, frozen=True, kw_only=True):
    """What the rest of a start hands in: passed sockets, the notify folder."""

    listen_fds: int = 0
    listen_fdnames: tuple[str, ...] = ()
    notify_folder: str = ""
    watchdog_usec: int = 0


def make_folder(path: Path) -> None:
    """The folder itself, with those that conmon wants to find. Entered by root only; a mapped root gets x later."""
    for folder in (f"{path}", f"{path}/exit", f"{path}/persist"):
        os.mkdir(folder, 0o700)


def prepare(
    host: Host,
    container: Container,
    container_id: str,
    cgroup_path: str,
    extras: Extras,
    gathered: Gathered,
) -> Bundle:
    """Compose the spec from what was gathered. The folder exists already. Raises CleatError."""
    path = host.paths.bundle(container_id)
    root = gathered.root
    if container.bundle:
        return _from_bundle(host, container, container_id, cgroup_path, extras, gathered)
    wanted = container.user or (root.image.user if root.image else "")
    found = users.identity_in_root(root.path, wanted, container.groups, container=container.name)
    identity = rootless.without_own_group(found)
    overlaid = not container.rootfs_writable and not rootless.is_rootless()
    shown = overlaid or gathered.user_namespace is not None
    inputs = _inputs(
        host,
        container,
        container_id,
        cgroup_path,
        extras,
        gathered,
        root=f"{path}/rootfs" if shown else root.path,
        identity=identity,
    )
    return Bundle(
        path=path,
        spec=spec.build(container, inputs),
        lower=(root.path,) if shown or gathered.secrets else (),
        overlay=host.paths.overlay(container_id) if overlaid else None,
        stop_signal=_stop_signal(container, gathered),
        gathered=gathered,
    )


def _stop_signal(container: Container, gathered: Gathered) -> int:
    """The definition's, unless it has the default and the image knows better."""
    own = container.service.kill_signal
    image = gathered.root.image
    if own == signal.SIGTERM and image is not None:
        return image.stop_signal_number or own
    return own


def _mappings(gathered: Gathered) -> Mappings:
    return gathered.user_namespace or Mappings()


def _on_host(identity: Identity, mappings: Mappings) -> tuple[int, int]:
    """The payload's user and group as the host sees them."""
    uid, gid = identity.uid, identity.gid
    return (
        idmap.to_host(uid, mappings.uids) if mappings.uids else uid,
        idmap.to_host(gid, mappings.gids) if mappings.gids else gid,
    )


def _inputs(
    host: Host,
    container: Container,
    container_id: str,
    cgroup_path: str,
    extras: Extras,
    gathered: Gathered,
    *,
    root: str,
    identity: Identity,
) -> SpecInputs:
    name = container.hostname or container.name.partition("@")[0]
    path = host.paths.bundle(container_id)
    mappings = rootless.mappings() if rootless.is_rootless() else _mappings(gathered)
    owner = mappings.root if mappings.uids else (0, 0)
    privileged = container.security.privileged
    is_default = container.security.seccomp_profile in {"", "default"}
    bounding = capabilities.effective_bounding(container.security, gathered.capabilities)
    own = [] if container.bundle else mounts.small_files(container, name, path, owner)
    labels = Labels() if container.bundle else confinement.of(container, path)
    confinement.mark([*(mount["source"] for mount in own), *filter(None, [extras.notify_folder])], labels.mount)
    return SpecInputs(
        container_id=container_id,
        root_path=root,
        cgroups_path="" if container.cgroup.mode is CgroupMode.DISABLED else cgroup_path,
        identity=identity,
        seccomp=None if privileged and is_default else seccomp.load(container.security.seccomp_profile, bounding),
        image=gathered.root.image,
        listen_fds=extras.listen_fds,
        listen_fdnames=extras.listen_fdnames,
        notify_socket_dir=extras.notify_folder,
        watchdog_usec=extras.watchdog_usec,
        credentials_dir=os.fspath(path / _CREDENTIALS) if gathered.secrets else "",
        extra_mounts=tuple(own + _mounts(container, gathered)),
        devices=_devices(container),
        masked_paths=oci_host.thermal_throttle_paths(),
        apparmor_profile=labels.apparmor,
        selinux_process_label=labels.process,
        selinux_mount_label=labels.mount,
        uid_mappings=mappings.uids,
        gid_mappings=mappings.gids,
        network_namespace=gathered.shared.path("network"),
        pid_namespace=gathered.shared.path("pid"),
        ipc_namespace=gathered.shared.path("ipc"),
        uts_namespace=gathered.shared.path("uts"),
        hostname=name,
        localtime=_localtime(container),
        init_path=_init(container),
        host_capabilities=gathered.capabilities,
        rootless=rootless.is_rootless(),
    )


def _mounts(container: Container, gathered: Gathered) -> list[mounts.OciMount]:
    found = mounts.sources(container, gathered.image_volumes, gathered.volumes)
    return mounts.idmapped(found, gathered.volumes.values()) if gathered.user_namespace else found


def _devices(container: Container) -> tuple[Device, ...]:
    named = devices.resolve(container.security.devices, container=container.name)
    return (*devices.all_of_host(), *named) if container.security.privileged else named


def _init(container: Container) -> str:
    if not container.init:
        return ""
    for path in _INITS:
        if os.access(path, os.X_OK):
            return path
    raise Unsupported(
        "there is no init to run",
        container=container.name,
        key="init",
        why="no program at " + ", ".join(_INITS),
        hint="install catatonit, or remove the key",
    )


def _localtime(container: Container) -> str:
    if not container.timezone:
        return ""
    path = "/etc/localtime" if container.timezone == "local" else f"{_ZONES}/{container.timezone}"
    path = os.path.realpath(path)
    # The host's own may be a file of its own; a name leads nowhere else.
    is_zone = path.startswith(f"{_ZONES}/") or path == "/etc/localtime"
    if not is_zone or not os.path.isfile(path):
        raise DefinitionRejected(
            f"no time zone {container.timezone!r} on this host",
            container=container.name,
            key="timezone",
            hint="install tzdata; timedatectl list-timezones",
        )
    return path


def _from_bundle(
    host: Host, container: Container, container_id: str, cgroup_path: str, extras: Extras, gathered: Gathered
) -> Bundle:
    if gathered.user_namespace is not None:
        raise DefinitionRejected(
            "a bundle brings its own user namespace",
            container=container.name,
            key="security.user_namespace",
            hint="set linux.uidMappings in its config.json",
        )
    config = _read_config(container)
    own_root = config.get("root")
    relative = own_root.get("path", "rootfs") if isinstance(own_root, dict) else "rootfs"
    root = os.path.realpath(os.path.join(container.bundle, str(relative)))
    identity = _bundle_identity(config)
    inputs = _inputs(host, container, container_id, cgroup_path, extras, gathered, root=root, identity=identity)
    return Bundle(
        path=host.paths.bundle(container_id),
        spec=spec.from_bundle(config, container, inputs),
        lower=(root,) if gathered.secrets else (),
        stop_signal=container.service.kill_signal,
        gathered=gathered,
    )


def _read_config(container: Container) -> dict[str, Any]:
    source = Path(container.bundle) / "config.json"
    why = "it is no object"
    try:
        with source.open("rb") as f:
            config = json.loads(f.read(_CONFIG_MAX))
    except (OSError, ValueError) as e:
        config, why = None, str(e)
    if not isinstance(config, dict):
        raise CleatError(
            "the bundle's config.json cannot be read",
            container=container.name,
            key="bundle",
            file=os.fspath(source),
            why=why,
        )
    return config


def _bundle_identity(config: dict[str, Any]) -> Identity:
    """Who its process runs as: the owner of its credentials."""
    process = config.get("process")
    user = process.get("user") if isinstance(process, dict) else None
    uid, gid = (user.get(key) if isinstance(user, dict) else 0 for key in ("uid", "gid"))
    return Identity(uid=uid if isinstance(uid, int) else 0, gid=gid if isinstance(gid, int) else 0)


def write_config(bundle: Bundle) -> None:
    """Write config.json. Raises OSError."""
    files.write_new(f"{bundle.path}/config.json", msgspec.json.encode(bundle.spec))


def mounts_of(bundle: Bundle) -> tuple[Mount, ...]:
    """What has to be mounted before conmon runs, with the folders for it made. Raises OSError.

    The order is fixed: a lower layer shifted for the user namespace, the root over it, credentials.
    """
    gathered = bundle.gathered
    if not bundle.lower or gathered is None:
        return ()
    found = _root_mounts(bundle, gathered.user_namespace)
    if gathered.secrets:
        found.append(_secrets(bundle, gathered.secrets))
    return tuple(found)


def _root_mounts(bundle: Bundle, shifted: Mappings | None) -> list[Mount]:
    lower, found = bundle.lower[0], list[Mount]()
    if shifted is not None:
        target = os.fspath(bundle.path / "lower") if bundle.overlay is not None else bundle.root
        os.mkdir(target, 0o700)
        found.append(
            Shifted(source=lower, target=target, uids=idmap.as_ranges(shifted.uids), gids=idmap.as_ranges(shifted.gids))
        )
        lower = target
    if bundle.overlay is not None:
        os.mkdir(bundle.root, 0o755)
        label = bundle.spec.get("linux", {}).get("mountLabel", "")
        found.append(Overlay(lower=lower, folder=os.fspath(bundle.overlay), target=bundle.root, label=label))
    return found


def _secrets(bundle: Bundle, secrets: Secrets) -> Mount:
    user = bundle.spec["process"].get("user") or {}
    identity = Identity(uid=user.get("uid", 0), gid=user.get("gid", 0))
    assert bundle.gathered is not None
    uid, gid = _on_host(identity, _mappings(bundle.gathered))
    folder = os.fspath(bundle.path / _CREDENTIALS)
    os.mkdir(folder, 0o700)
    return secrets.mount(folder, uid, gid)
