# SPDX-License-Identifier: Apache-2.0
"""What is asked for, as values that fit into a message, and how it is carried out; here and in the executor alike."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import msgspec

from agent.spawn import child, mounts, unwritable
from agent.spawn.userns import Ranges, user_namespace

OWN_NULL = -1
"""In a table of fds: the null device as it is in the mount namespace of the child."""


class Overlay(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An overlay of `lower` at `target`; its upper and work folder lie in `folder`. `label` is SELinux's."""

    lower: str
    folder: str
    target: str
    label: str = ""


class Shifted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`source` at `target`, with owners as a user namespace of these ranges sees them."""

    source: str
    target: str
    uids: Ranges
    gids: Ranges


class Files(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A read-only tmpfs at `target` with these files, for one user. It has no repr: it holds secrets."""

    target: str
    content: Mapping[str, bytes]
    size: int
    uid: int
    gid: int

    def __repr__(self) -> str:
        return f"Files({self.target!r})"


Mount = Overlay | Shifted | Files


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One program to start.

    `fds`: the child's fds 0 and up, each an index into the fds that come along, or OWN_NULL. With `cover`, an empty
    folder to mount over for a moment, it gets a mount namespace with a null device of its own, and `mounts` in it.
    `unwritable`: a program, argv[0] or one that will be executed in that mount namespace, to be run from a read-only
    mount (spawn.unwritable).
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    fds: tuple[int, ...]
    cover: str = ""
    mounts: tuple[Mount, ...] = ()
    unwritable: str = ""


def carry_out(request: Request, fds: Sequence[int]) -> int:
    """Returns the pid. Blocks, for a few milliseconds at most. Raises CleatError, OSError."""
    if not request.cover:
        return _start(request, fds)
    with mounts.private_mounts():
        mounts.own_null(request.cover)
        for mount in request.mounts:
            _mount(mount)
        if request.unwritable:
            unwritable.cover(request.unwritable)
        return _start(request, fds)


def _start(request: Request, fds: Sequence[int]) -> int:
    null = -1
    try:
        if OWN_NULL in request.fds:
            # Not one that is open already: a payload may get it, and it must be the one of this mount namespace.
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        table = [null if index == OWN_NULL else fds[index] for index in request.fds]
        program = unwritable.opened(request.unwritable) if request.unwritable == request.argv[0] else -1
        return child.start(request.argv, env=request.env, fds=table, program=program)
    finally:
        if null >= 0:
            os.close(null)


def _mount(mount: Mount) -> None:
    match mount:
        case Overlay():
            upper, work = mounts.prepare_overlay(mount.folder, like=mount.lower)
            mounts.mount_overlay((mount.lower,), upper, work, mount.target, label=mount.label)
        case Shifted():
            namespace = user_namespace(mount.uids, mount.gids)
            try:
                mounts.mount_idmapped(mount.source, mount.target, namespace)
            finally:
                os.close(namespace)
        case Files():
            _put_files(mount)


def _put_files(mount: Files) -> None:
    mounts.mount_secrets(mount.target, size=mount.size)
    for name, content in mount.content.items():
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(os.path.join(mount.target, name), flags, 0o400)
        with open(fd, "wb") as f:
            f.write(content)
            os.fchown(fd, mount.uid, mount.gid)
    os.chmod(mount.target, 0o500)
    os.chown(mount.target, mount.uid, mount.gid)
    mounts.make_read_only(mount.target)
