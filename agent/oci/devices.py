# SPDX-License-Identifier: Apache-2.0
"""Devices of the host for a container: "HOST[:CONTAINER][:rwm]" as in podman-run(1), --device, looked up."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from agent.errors import InvalidArgument, Unsupported
from agent.oci.inputs import Device

# Mounts of their own in every container, or its own console.
_NOT_PASSED_ON = frozenset({"pts", "shm", "mqueue", "fd", "console", "ptmx", "core", "hugepages"})
_KEY = "security.devices"


def resolve(entries: Iterable[str], *, container: str = "") -> tuple[Device, ...]:
    """The devices of a definition; a folder means all in it. Raises InvalidArgument for anything else."""
    return tuple(device for entry in entries for device in _resolve(entry, container))


def all_of_host(folder: Path = Path("/dev")) -> tuple[Device, ...]:
    """Every device node of the host, for privileged containers."""
    return tuple(_below(folder, folder, "rwm"))


def split(entry: str) -> tuple[str, str, str]:
    """(host path, path in the container, access). Raises InvalidArgument when it is not of that form."""
    host, *rest = entry.split(":")
    access = rest.pop() if rest and _is_access(rest[-1]) else "rwm"
    target = rest.pop() if rest else host
    if rest or not host.startswith("/") or not target.startswith("/"):
        raise InvalidArgument(f"{entry!r} is no device", key=_KEY, hint='write "/dev/HOST[:/dev/CONTAINER][:rwm]"')
    return os.path.normpath(host), os.path.normpath(target), access


def _is_access(text: str) -> bool:
    return bool(text) and set(text) <= set("rwm") and len(set(text)) == len(text)


def _resolve(entry: str, container: str) -> Iterator[Device]:
    if "=" in entry and not entry.startswith("/"):
        raise Unsupported(f"{entry!r} is a CDI device", container=container, key=_KEY, hint="name its device nodes")
    host, target, access = split(entry)
    path = Path(host)
    try:
        if path.is_dir():
            yield from _below(path, Path(target), access)
            return
        status = path.stat()
    except OSError as e:
        raise InvalidArgument(f"there is no device {host}", container=container, key=_KEY, why=e.strerror or "") from e
    device = _device(host, target, access, status)
    if device is None:
        raise InvalidArgument(f"{host} is no device", container=container, key=_KEY, hint="use a [[mount]] for files")
    yield device


def _below(folder: Path, target: Path, access: str) -> Iterator[Device]:
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.name in _NOT_PASSED_ON or entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _below(folder / entry.name, target / entry.name, access)
            continue
        device = _device(entry.path, str(target / entry.name), access, entry.stat(follow_symlinks=False))
        if device is not None:
            yield device


def _device(host: str, target: str, access: str, status: os.stat_result) -> Device | None:
    kind = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        return None
    return Device(
        path=target,
        type=kind,
        major=os.major(status.st_rdev),
        minor=os.minor(status.st_rdev),
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        access=access,
        source=host,
    )
