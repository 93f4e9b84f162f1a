# SPDX-License-Identifier: Apache-2.0
"""The [[mount]] tables of a definition as OCI mounts, and the small files every container gets (hosts, resolv.conf).

The runtime resolves targets below the root itself, safely; nothing here looks into a container's root.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from agent import files
from agent.definition.model import Container, Mount, MountType
from agent.errors import CommandNotFound

OciMount = dict[str, Any]

_PROPAGATION = frozenset({"private", "rprivate", "slave", "rslave", "shared", "rshared"})
_HOSTS_MAX = 64 << 10
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


def take_small_files(container: Container, other: Path, bundle: Path) -> None:
    """Have /etc/hosts and /etc/resolv.conf be the very files of a container whose network is shared.

    What the definition says of its own stays its own. `other` is the bundle of that one; the files outlive it. Raises
    OSError.
    """
    own = {"hosts": container.network.hosts, "resolv.conf": container.network.dns}
    for name in (name for name, said in own.items() if not said):
        # One that runs from a bundle of its own has none.
        with suppress(FileNotFoundError):
            os.link(f"{other}/{name}", f"{bundle}/{name}")


def small_files(container: Container, hostname: str, bundle: Path, owner: tuple[int, int]) -> list[OciMount]:
    """Write /etc/hosts, /etc/hostname and /etc/resolv.conf of the container; returns their mounts. `owner` is the
    container's root.

    Containers on the host's network see the host's resolver settings and hosts; others get localhost and their name.
    What take_small_files() took stays as it is, but for this container's name.
    """
    texts = {"hosts": _hosts(container, hostname), "hostname": hostname + "\n", "resolv.conf": _resolver(container)}
    access = "ro" if container.security.read_only else "rw"
    options = ["bind", "rprivate", "nosuid", "nodev", "noexec", access]
    found: list[OciMount] = []
    for name, text in texts.items():
        path = f"{bundle}/{name}"
        if container.network.mode.startswith("container:") and os.path.lexists(path):
            if name == "hosts":
                _add_name(path, hostname)
        elif text:
            _write(path, text, owner)
        else:
            continue
        found.append({"destination": f"/etc/{name}", "type": "bind", "source": path, "options": options})
    return found


def _write(path: str, text: str, owner: tuple[int, int]) -> None:
    files.write_new(path, text.encode(), 0o644)
    if owner != (0, 0):
        os.chown(path, *owner)


def _add_name(path: str, hostname: str) -> None:
    """Both have the loopback in common. The other's payload has the file too: it may be long, or leased (fcntl(2))."""
    line = f"127.0.1.1 {hostname}\n".encode()
    with suppress(BlockingIOError):
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "r+b", buffering=0) as file:
            text = file.read(_HOSTS_MAX) or b""
            if len(text) < _HOSTS_MAX and line not in text.splitlines(keepends=True):
                file.write(line if text.endswith(b"\n") else b"\n" + line)


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
