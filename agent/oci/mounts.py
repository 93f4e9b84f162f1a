# SPDX-License-Identifier: Apache-2.0
"""The mounts of a container: podman's default set, then ours, then what the definition asked for.

Later entries take the place of earlier ones with the same destination; in the end parents come before
children.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from typing import Any

from agent.definition.model import Container
from agent.oci.inputs import SpecInputs

Mount = dict[str, Any]

NOTIFY_FOLDER = "/run/notify"
CREDENTIALS_FOLDER = "/run/credentials"
INIT_PATH = "/run/cleat-init"

_SHM_SIZE = "64000k"
_TTY_GID = 5
_QUIET = ("nosuid", "noexec", "nodev")


def build(container: Container, inputs: SpecInputs) -> list[Mount]:
    """All mounts in the order in which the runtime shall make them."""
    layers = (
        _kernel(container, inputs),
        _scratch(container),
        _ours(inputs),
        inputs.extra_mounts,
        _private(inputs),
    )
    return ordered(mount for layer in layers for mount in layer)


def ordered(mounts: Iterable[Mount]) -> list[Mount]:
    """The last mount of each destination, parents first; otherwise in the order given."""
    by_destination: dict[str, Mount] = {}
    for mount in mounts:
        destination = posixpath.normpath(mount["destination"])
        by_destination.pop(destination, None)
        by_destination[destination] = mount
    return [by_destination[d] for d in sorted(by_destination, key=_depth)]


def _depth(path: str) -> int:
    return path.rstrip("/").count("/")


def bind(source: str, destination: str, *, read_only: bool, exec: bool = False) -> Mount:  # noqa: A002
    """A private bind mount without set-id programs and devices."""
    options = ["bind", "rprivate", "nosuid", "nodev", "ro" if read_only else "rw"]
    if not exec:
        options.append("noexec")
    return {"destination": destination, "type": "bind", "source": source, "options": options}


def ours(inputs: SpecInputs) -> list[Mount]:
    """What the agent itself puts into a container: the notify socket's folder and the credentials."""
    return list(_private(inputs))


def root_propagation(mounts: Iterable[Mount]) -> str:
    """`linux.rootfsPropagation` that the mounts' own propagation needs; "" = the runtime's default."""
    options = {option for mount in mounts for option in mount.get("options", ())}
    if options & {"shared", "rshared"}:
        return "shared"
    return "rslave" if options & {"slave", "rslave"} else ""


def _mount(destination: str, kind: str, *options: str, source: str = "") -> Mount:
    return {"destination": destination, "type": kind, "source": source or kind, "options": list(options)}


def _host_folder(path: str, *options: str) -> Mount:
    return _mount(path, "bind", "rbind", "rprivate", *_QUIET, *options, source=path)


def _kernel(container: Container, inputs: SpecInputs) -> Iterable[Mount]:
    security = container.security
    nested = inputs.rootless or inputs.has_user_namespace
    is_host_pid = security.pid == "host" and not inputs.pid_namespace
    yield _host_folder("/proc") if nested and is_host_pid else _mount("/proc", "proc", *_QUIET)
    dev_access = "ro" if _has_readonly_scratch(container) else "rw"
    yield _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k", dev_access)
    yield _devpts(inputs)
    yield from _ipc(container, inputs, nested=nested)
    yield from _sys(container, inputs)


def _devpts(inputs: SpecInputs) -> Mount:
    options = ["rprivate", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    if not inputs.gid_mappings or any(_holds(m.container_id, m.size, _TTY_GID) for m in inputs.gid_mappings):
        options.append(f"gid={_TTY_GID}")
    return _mount("/dev/pts", "devpts", *options)


def _holds(first: int, size: int, wanted: int) -> bool:
    return first <= wanted < first + size


def _ipc(container: Container, inputs: SpecInputs, *, nested: bool) -> Iterable[Mount]:
    is_host = container.security.ipc == "host" and not inputs.ipc_namespace
    if is_host and nested:
        yield _host_folder("/dev/mqueue")
    else:
        yield _mount("/dev/mqueue", "mqueue", "rprivate", *_QUIET)
    access = ["ro"] if _has_readonly_scratch(container) else []
    if is_host:
        yield _host_folder("/dev/shm", *access)
    elif container.security.ipc != "none":
        options = ("rprivate", *_QUIET, "mode=1777", f"size={_SHM_SIZE}", *access)
        yield _mount("/dev/shm", "tmpfs", *options, source="shm")


def shares_sysfs(container: Container, inputs: SpecInputs) -> bool:
    """Whether /sys must be the host's: a user namespace can mount sysfs only if it owns the network namespace."""
    nested = inputs.rootless or inputs.has_user_namespace
    return nested and not _owns_network(container, inputs)


def _sys(container: Container, inputs: SpecInputs) -> Iterable[Mount]:
    access = "rw" if container.security.privileged else "ro"
    if shares_sysfs(container, inputs):
        yield _mount("/sys", "bind", "rbind", "rprivate", *_QUIET, access, source="/sys")
    else:
        yield _mount("/sys", "sysfs", "rprivate", *_QUIET, access)
    yield _mount("/sys/fs/cgroup", "cgroup", "rprivate", *_QUIET, "relatime", access)


def _owns_network(container: Container, inputs: SpecInputs) -> bool:
    return not inputs.network_namespace and container.network.mode in {"none", "private", "bridge"}


def _has_readonly_scratch(container: Container) -> bool:
    return container.security.read_only and not container.security.read_only_tmpfs


def _scratch(container: Container) -> Iterable[Mount]:
    """Writable temporary folders of a read-only container: podman-run(1), --read-only-tmpfs."""
    if container.security.read_only and container.security.read_only_tmpfs:
        for path in ("/run", "/tmp", "/var/tmp"):
            yield _mount(path, "tmpfs", "rw", "rprivate", "nosuid", "nodev", "tmpcopyup")


def _ours(inputs: SpecInputs) -> Iterable[Mount]:
    if inputs.localtime:
        yield bind(inputs.localtime, "/etc/localtime", read_only=True)
    if inputs.init_path:
        yield bind(inputs.init_path, INIT_PATH, read_only=True, exec=True)
    if inputs.rootless:
        for device in inputs.devices:
            options = ("bind", "rprivate", "nosuid", "noexec", "rw" if "w" in device.access else "ro")
            yield _mount(device.path, "bind", *options, source=device.source or device.path)


def _private(inputs: SpecInputs) -> Iterable[Mount]:
    # Read-only: the payload may send to the socket (that is no write to the file system), not replace it.
    if inputs.notify_socket_dir:
        yield bind(inputs.notify_socket_dir, NOTIFY_FOLDER, read_only=True)
    if inputs.credentials_dir:
        yield bind(inputs.credentials_dir, CREDENTIALS_FOLDER, read_only=True)
