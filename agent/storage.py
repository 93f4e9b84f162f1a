# SPDX-License-Identifier: Apache-2.0
"""Roots, overlays and volumes.

A container's overlay is mounted in a mount namespace of its own, which conmon is then spawned into: nothing shows in
the host's mount table, nothing has to be unmounted, and the kernel drops the mount with the last process of the
container, whatever happens to the agent (mount_namespaces(7)). Only system calls for mounts stand here.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from agent import process
from agent.errors import CleatError, RuntimeFailed

_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_SLAVE, _MS_NODEV = 0x4000, 0x80000, 0x4
_OPTIONS_MAX = 4095
_REMOVE_TIMEOUT = 120.0


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str, hint: str = "") -> None:
    if result != 0:
        raise RuntimeFailed(what, why=os.strerror(ctypes.get_errno()), hint=hint)


@functools.cache
def _host_mounts() -> int:
    """The mount namespace that this agent belongs to, held to come back to."""
    return os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def private_mounts() -> Iterator[None]:
    """Be in a fresh mount namespace for the length of the block, which must not await.

    Mounts made inside belong to whatever was spawned inside. Host mounts keep arriving and leaving there (slave), so
    the host can still unmount its disks. Raises RuntimeFailed.
    """
    libc, home = _libc(), _host_mounts()
    _check(libc.unshare(_CLONE_NEWNS), "cannot make a mount namespace", "the agent needs CAP_SYS_ADMIN")
    try:
        _check(
            libc.mount(None, b"/", None, _MS_REC | _MS_SLAVE, None),
            "cannot make the mount namespace private",
        )
        yield
    finally:
        if libc.setns(home, _CLONE_NEWNS) != 0:
            # Nothing can be done right from a foreign namespace; systemd restarts the agent, containers stay.
            raise SystemExit(
                f"cannot return to the host's mount namespace: {os.strerror(ctypes.get_errno())}"
            )


def _escape(path: str) -> str:
    """overlayfs splits options at commas and layers at colons; a backslash takes their meaning away."""
    return path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")


def overlay_options(lower: Sequence[str], upper: str, work: str, *, extra: Sequence[str] = ()) -> str:
    """The option string of an overlay mount, lowest layer last (kernel's overlayfs.rst)."""
    layers = ":".join(_escape(layer) for layer in lower)
    return ",".join([f"lowerdir={layers}", f"upperdir={_escape(upper)}", f"workdir={_escape(work)}", *extra])


def mount_overlay(lower: Sequence[str], upper: str, work: str, target: str) -> None:
    """Mount an overlay at `target`, in the mount namespace of the moment. Raises RuntimeFailed with the kernel's reason."""
    options = overlay_options(lower, upper, work)
    if len(options) > _OPTIONS_MAX:
        raise RuntimeFailed(
            "cannot mount the root", why="its paths are too long for one mount", hint="use shorter paths"
        )
    result = _libc().mount(b"overlay", os.fsencode(target), b"overlay", _MS_NODEV, os.fsencode(options))
    _check(
        result,
        f"cannot mount an overlay of {lower[0]}",
        "its upper folder must be on a local file system that is no overlay itself; see also rootfs_writable",
    )


def prepare_overlay(folder: Path, *, like: str) -> tuple[str, str]:
    """Fresh upper and work folders below `folder`. The upper is what `/` shows, so it takes mode and owner of `like`."""
    upper, work = folder / "upper", folder / "work"
    folder.mkdir(mode=0o711, parents=True)
    upper.mkdir()
    work.mkdir(mode=0o700)
    found = os.stat(like)
    os.chown(upper, found.st_uid, found.st_gid)
    os.chmod(upper, found.st_mode & 0o7777)
    return os.fspath(upper), os.fspath(work)


async def remove_tree(*paths: Path) -> None:
    """Remove folders with all that is in them, without following links or leaving their file system."""
    present = [os.fspath(path) for path in paths if os.path.lexists(path)]
    if not present:
        return
    result = await process.run(["rm", "-rf", "--one-file-system", "--", *present], timeout=_REMOVE_TIMEOUT)
    if result.returncode != 0:
        raise CleatError(f"cannot remove {present[0]}", why=result.text)


def remove_small_tree(path: Path) -> None:
    """Remove a folder of ours that holds a handful of entries; for undo, where nothing may be awaited."""
    with suppress(OSError):
        shutil.rmtree(path)
