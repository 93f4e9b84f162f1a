# SPDX-License-Identifier: Apache-2.0
"""Containers of an agent without root, under `systemctl --user`: whose ids they have, and what cannot be had.

The runtime makes the user namespace itself, with newuidmap(1) for more ids than the caller's own. Before that nothing
can be mounted, so there is no overlay: a root folder is written to as it is, or only read; of an image, each run has a
copy. Files of subordinate ids are made and removed in a user namespace with the same ids.
"""

from __future__ import annotations

import functools
import os
import pwd
import shutil
from pathlib import Path

import msgspec

from agent.definition.model import Container
from agent.errors import Unsupported
from agent.oci import idmap
from agent.oci.idmap import Mappings
from agent.oci.inputs import Identity
from agent.spawn import child
from agent.spawn.mapped import Mapped
from agent.spawn.spawner import HERE, Spawner


def is_rootless() -> bool:
    return os.geteuid() != 0


@functools.cache
def mappings() -> Mappings:
    """The caller is root in the container; their ranges of subuid(5) and subgid(5) follow, where newuidmap is there."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    path = child.base_environment()["PATH"]
    if not (shutil.which("newuidmap", path=path) and shutil.which("newgidmap", path=path)):
        return idmap.for_user(uid, gid, user, "", "")
    return idmap.for_user(uid, gid, user, _read("/etc/subuid"), _read("/etc/subgid"))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def for_files() -> Spawner:
    """By whom tools are run on files of containers, which may belong to subordinate ids."""
    if not is_rootless():
        return HERE
    found = mappings()
    return Mapped(idmap.as_ranges(found.uids), idmap.as_ranges(found.gids))


def wants_copy(container: Container) -> bool:
    """Whether each run writes to a copy of the image's tree."""
    return is_rootless() and bool(container.image) and not container.security.read_only


def without_own_group(identity: Identity) -> Identity:
    """The group that somebody has anyway is no additional one to runc, which can set none without root."""
    if not is_rootless():
        return identity
    others = tuple(gid for gid in identity.additional_gids if gid != identity.gid)
    return msgspec.structs.replace(identity, additional_gids=others)


def check(container: Container) -> None:
    """Raises Unsupported for what only the system's agent can do."""
    if not is_rootless():
        return
    if container.rootfs and not container.rootfs_writable and not container.security.read_only:
        raise _needs_root(
            container,
            "rootfs",
            "its changes would be kept in an overlay, which only root can mount",
            "set security.read_only, or rootfs_writable",
        )
    if container.security.user_namespace != "host":
        raise _needs_root(container, "security.user_namespace", "yours is the only one it can have", "remove the key")
    if container.credential:
        raise _needs_root(container, "credential", "they are kept in a tmpfs, which only root can mount", "use a mount")


def _needs_root(container: Container, key: str, why: str, hint: str) -> Unsupported:
    return Unsupported("needs the system's agent", container=container.name, key=key, why=why, hint=hint)
