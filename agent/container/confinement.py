# SPDX-License-Identifier: Apache-2.0
"""What keeps a container apart from the host beside its spec: labels, a /dev/null of its own, no foreign annotations.

Each bundle says in its file `mcs` which SELinux categories it has.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from agent.definition.model import Container
from agent.oci import labels
from agent.oci.annotations import dropped_annotations
from agent.oci.labels import Labels, Pair
from agent.systemd import journal

_FILE = "mcs"
_decoder = msgspec.json.Decoder(Pair)


def of(container: Container, bundle: Path, *, has_selinux: bool | None = None) -> Labels:
    """What this incarnation is to be known by; its categories are noted in its bundle. Raises Unsupported, OSError."""
    profile = labels.apparmor(container)
    enabled = labels.selinux_is_enabled() if has_selinux is None else has_selinux
    if not labels.need_selinux(container, enabled=enabled):
        return Labels(apparmor=profile)
    pair = labels.free_pair(set(_in_use(bundle.parent)))
    (bundle / _FILE).write_bytes(msgspec.json.encode(pair))
    process, mount = labels.selinux(container, labels.selinux_contexts(), pair)
    return Labels(apparmor=profile, process=process, mount=mount)


def _in_use(bundles: Path) -> Iterator[Pair]:
    for entry in os.scandir(bundles):
        with suppress(OSError, msgspec.DecodeError):
            yield _decoder.decode(Path(entry.path, _FILE).read_bytes())


def mark(paths: Iterable[str | Path], label: str) -> None:
    """Let the container's processes use files of ours that are mounted into it; one that another container has as well
    is marked for all. Raises OSError."""
    for path in paths if label else ():
        found = os.lstat(path)
        is_joint = stat.S_ISREG(found.st_mode) and found.st_nlink > 1
        text = labels.for_all(label) if is_joint else label
        os.setxattr(path, "security.selinux", text.encode() + b"\0", follow_symlinks=False)


def cover_of(folder: Path) -> str:
    """For a mount namespace of conmon's own (Request.cover); "" without root: nothing of the host's to be kept safe."""
    return os.fspath(folder) if os.geteuid() == 0 else ""


def tell_dropped(container: Container, container_id: str) -> None:
    """Say in the journal which annotations of a definition the container does not get."""
    dropped = dropped_annotations(container.annotations)
    if dropped:
        journal.send(
            journal.Event.FEATURE_MISSING,
            f"annotations that engines or runtimes act on are not passed on: {', '.join(dropped)}",
            container=container.name,
            container_id=container_id,
            priority=journal.Priority.WARNING,
        )
