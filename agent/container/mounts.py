# SPDX-License-Identifier: Apache-2.0
"""The [[mount]] tables of a definition as OCI mounts, and the small files every container gets (hosts, resolv.conf).

The runtime resolves targets below the root itself, safely; nothing here looks into a container's root.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agent import files
from agent.definition.model import Container, Mount, MountType
from agent.errors import CommandNotFound

OciMount = dict[str, Any]

_PROPAGATION = frozenset({"private", "rprivate", "slave", "rslave", "shared", "rshared"})
_LOCALHOST = "127.0.0.1 localhost\n::1 localhost\n"


def oci_mount(mount: Mount, *, source: str) -> OciMount:
    """One table as the runtime reads it; `source` is resolved (a volume's folder, a bind's path)."""
    access = "ro" if mount.read_only else "rw"
    match mount.type:
        case MountType.BIND | MountType.VOLUME:
            options = ["rbind", access, *mount.options]
            # A volume's content came from an image or a container: no device node and no set-id bit of it shall work.
            if mount.type is MountType.VOLUME:
                options += [f"no{flag}" for flag in ("dev", "suid") if not {flag, f"no{flag}"} & set(mount.options)]
            if not _PROPAGATION & set(mount.options):
                options.append("rprivate")
            return {"destination": mount.target, "type": "bind", "source": source, "options": options}
        case MountType.TMPFS:
            options = ["nosuid", "nodev", access, f"mode={mount.mode:o}", *mount.options]
            if mount.size:
                options.append(f"size={mount.size}")
            return {"destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": options}
        case MountType.MQUEUE:
            options = ["nosuid", "noexec", "nodev", *mount.options]
            return {"destination": mount.target, "type": "mqueue", "source": "mqueue", "options": options}
        case MountType.DEVPTS:
            options = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *mount.options]
            return {"destination": mount.target, "type": "devpts", "source": "devpts", "options": options}


def sources(container: Container, image_volumes: Iterable[Mount], volumes: Mapping[str, Path]) -> list[OciMount]:
    """All mounts with their sources on the host; `volumes` by name. Raises CommandNotFound."""
    found: list[OciMount] = []
    for i, mount in enumerate([*container.mount, *image_volumes]):
        source = ""
        if mount.type is MountType.BIND:
            source = _bind_source(mount, container.name, f"mount[{i}].source")
        elif mount.type is MountType.VOLUME:
            source = os.fspath(volumes[mount.source])
        found.append(oci_mount(mount, source=source))
    return found


def _bind_source(mount: Mount, container: str, key: str) -> str:
    if not os.path.exists(mount.source):
        raise CommandNotFound(
            f"{mount.source} does not exist", container=container, key=key, hint="create it, or mend the path"
        )
    return os.path.realpath(mount.source)


def idmapped(mounts: Iterable[OciMount], volumes: Iterable[Path]) -> list[OciMount]:
    """For a user namespace: volumes keep the container's own ids, so what they show must be shifted as it is."""
    shifted = {os.fspath(path) for path in volumes}
    return [
        {**mount, "options": [*mount["options"], "idmap"]}
        if mount["source"] in shifted and "idmap" not in mount["options"]
        else mount
        for mount in mounts
    ]


def small_files(container: Container, hostname: str, bundle: Path, owner: tuple[int, int]) -> list[OciMount]:
    """Write /etc/hosts, /etc/hostname and /etc/resolv.conf of the container; returns their mounts. `owner` is the
    container's root.

    Containers on the host's network see the host's resolver settings and hosts; others get localhost and their name.
    """
    texts = {"hosts": _hosts(container, hostname), "hostname": hostname + "\n"}
    resolver = _resolver(container)
    if resolver:
        texts["resolv.conf"] = resolver
    access = "ro" if container.security.read_only else "rw"
    return [_small_file(bundle, name, text, owner, access) for name, text in texts.items()]


def _small_file(bundle: Path, name: str, text: str, owner: tuple[int, int], access: str) -> OciMount:
    path = f"{bundle}/{name}"
    files.write_new(path, text.encode(), 0o644)
    if owner != (0, 0):
        os.chown(path, *owner)
    options = ["bind", "rprivate", "nosuid", "nodev", "noexec", access]
    return {"destination": f"/etc/{name}", "type": "bind", "source": path, "options": options}


def _read(path: str) -> str:
    try:
        return files.read(path).decode(errors="replace")
    except OSError:
        return ""


def _hosts(container: Container, hostname: str) -> str:
    base = _read("/etc/hosts") if container.network.mode == "host" else ""
    lines = [base.rstrip("\n") + "\n" if base.strip() else _LOCALHOST]
    if container.network.mode != "host":
        lines.append(f"127.0.1.1 {hostname}\n")
    lines += [f"{address} {name}\n" for name, address in container.network.hosts.items()]
    return "".join(lines)


def _resolver(container: Container) -> str:
    if container.network.dns:
        return "".join(f"nameserver {address}\n" for address in container.network.dns)
    return _read("/etc/resolv.conf") if container.network.mode == "host" else ""
