# SPDX-License-Identifier: Apache-2.0
"""System calls for what is mounted before a container starts.

A container's overlay is mounted in a mount namespace of its own, which conmon is then spawned into: nothing shows in
the host's mount table, nothing has to be unmounted, and the kernel drops the mount with the last process of the
container, whatever happens to the agent (mount_namespaces(7)).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from agent.errors import RuntimeFailed
from agent.spawn import trees

_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_SLAVE = 0x4000, 0x80000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 0x1, 0x2, 0x4, 0x8, 0x20, 0x1000
_MNT_DETACH = 2
_NULL = os.makedev(1, 3)  # the kernel's devices.txt
# What a layer's author may have put into trusted.overlay.* must not lead anywhere (kernel's overlayfs.rst).
_OVERLAY_HARDENED = ("redirect_dir=nofollow", "metacopy=off")
_OPTIONS_MAX = 4095


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str, hint: str = "") -> None:
    if result != 0:
        raise RuntimeFailed(what, why=os.strerror(ctypes.get_errno()), hint=hint)


@functools.cache
def hold_host_mounts() -> int:
    """The mount namespace that this process belongs to, held to come back to."""
    return os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def private_mounts() -> Iterator[None]:
    """Be in a fresh mount namespace for the length of the block, which must not await.

    Mounts made inside belong to whatever was spawned inside. Host mounts keep arriving and leaving there (slave), so
    the host can still unmount its disks. Raises RuntimeFailed.
    """
    libc, home = _libc(), hold_host_mounts()
    _check(libc.unshare(_CLONE_NEWNS), "cannot make a mount namespace", "it needs CAP_SYS_ADMIN")
    try:
        _check(
            libc.mount(None, b"/", None, _MS_REC | _MS_SLAVE, None),
            "cannot make the mount namespace private",
        )
        yield
    finally:
        if libc.setns(home, _CLONE_NEWNS) != 0:
            # Nothing can be done right from a foreign namespace; systemd starts another executor, containers stay.
            raise SystemExit(f"cannot return to the host's mount namespace: {os.strerror(ctypes.get_errno())}")


def own_null(cover: str) -> None:
    """Put a fresh null device over /dev/null, in the mount namespace of the moment; `cover` is any folder.

    conmon makes /dev/null the payload's stdin. Of the host's own node a payload could change the mode (fchmod(2)), and
    crun makes the payload's user its owner. Raises RuntimeFailed, OSError.
    """
    libc, folder = _libc(), os.fsencode(cover)
    flags, options = _MS_NOSUID | _MS_NOEXEC, b"mode=0700,size=4k,nr_inodes=2"
    _check(libc.mount(b"tmpfs", folder, b"tmpfs", flags, options), "cannot mount a tmpfs")
    node = os.path.join(cover, "null")
    os.mknod(node, stat.S_IFCHR | 0o666, _NULL)
    os.chmod(node, 0o666)
    _check(libc.mount(os.fsencode(node), os.fsencode(os.devnull), None, _MS_BIND, None), "cannot mount a null device")
    _check(libc.umount2(folder, _MNT_DETACH), "cannot unmount a tmpfs")


def _escape(path: str) -> str:
    """overlayfs splits options at commas and layers at colons; a backslash takes their meaning away."""
    return path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")


def overlay_options(lower: Sequence[str], upper: str, work: str, *, extra: Sequence[str] = ()) -> str:
    """The option string of an overlay mount, lowest layer last (kernel's overlayfs.rst)."""
    layers = ":".join(_escape(layer) for layer in lower)
    return ",".join([f"lowerdir={layers}", f"upperdir={_escape(upper)}", f"workdir={_escape(work)}", *extra])


def mount_overlay(lower: Sequence[str], upper: str, work: str, target: str, *, label: str = "") -> None:
    """Mount an overlay at `target`, in the mount namespace of the moment; `label` is SELinux's for all in it.

    Raises RuntimeFailed.
    """
    context = (f'context="{label}"',) if label else ()
    options = overlay_options(lower, upper, work, extra=(*_OVERLAY_HARDENED, *context))
    if len(options) > _OPTIONS_MAX:
        raise RuntimeFailed("cannot mount the root", why="its paths are too long", hint="use shorter paths")
    result = _libc().mount(b"overlay", os.fsencode(target), b"overlay", _MS_NODEV, os.fsencode(options))
    if result != 0:
        why = os.strerror(ctypes.get_errno())
        raise RuntimeFailed(f"cannot mount an overlay of {lower[0]}", why=why, hint=_overlay_hint(lower[0], upper))


def _overlay_hint(lower: str, upper: str) -> str:
    kinds = file_system_of(lower), file_system_of(upper)
    if kinds[1] in _UNFIT_FOR_UPPER:
        return (
            f"{os.path.dirname(upper)} is on {kinds[1]}, which cannot hold an overlay's changes: "
            "put /var/lib/cleat on ext4, xfs or btrfs, or set rootfs_writable"
        )
    if "xfs" in kinds:
        return "an xfs must be made with ftype=1: xfs_info; see also dmesg"
    return f"the file systems are {kinds[0]} and {kinds[1]}; dmesg has the kernel's reason; see also rootfs_writable"


_UNFIT_FOR_UPPER = frozenset({"overlay", "nfs", "nfs4", "cifs", "vfat", "fuse", "9p", "ecryptfs", "squashfs"})


def file_system_of(path: str) -> str:
    """The type of the file system a path is on (proc_pid_mountinfo(5)); "unknown" where it cannot be told."""
    try:
        device = os.stat(path).st_dev
        table = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return "unknown"
    wanted, real, best = f"{os.major(device)}:{os.minor(device)}", os.path.realpath(path), ("", "unknown")
    for line in table.splitlines():
        fields, _, rest = line.partition(" - ")
        _, _, number, _, point, *_ = fields.split(" ")
        kind = rest.split(" ")[0]
        if number == wanted:
            return kind
        if (real + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best[0]):
            best = point, kind
    return best[1]


def mount_idmapped(source: str, target: str, user_namespace: int) -> None:
    """Show `source` at `target` with owners shifted by a user namespace (mount_setattr(2), ID-mapped mounts).

    In the mount namespace of the moment. What is mounted below `source` is not shown. Raises RuntimeFailed.
    """
    try:
        tree = trees.id_mapped(source, user_namespace)
    except OSError as e:
        hint = "" if e.errno == errno.ENOENT else _idmap_hint(source)
        raise RuntimeFailed(f"cannot shift the owners of {source}", why=e.strerror or str(e), hint=hint) from e
    try:
        trees.attach(tree, target)
    except OSError as e:
        raise RuntimeFailed(f"cannot mount {source}", why=e.strerror or str(e)) from e
    finally:
        os.close(tree)


def _idmap_hint(source: str) -> str:
    return (
        f"its file system ({file_system_of(source)}) cannot do ID-mapped mounts: use ext4, xfs or btrfs and "
        'Linux 5.19 or newer, or user_namespace = "host"'
    )


def mount_secrets(target: str, *, size: int) -> None:
    """A small tmpfs at `target` that is never swapped out, where the kernel can promise that (6.4 and newer).

    In the mount namespace of the moment: nobody outside sees it, it ends with the container. Raises RuntimeFailed.
    """
    options = f"mode=0700,size={size},nr_inodes=1024"
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    for given in (f"{options},noswap", options):
        if _libc().mount(b"tmpfs", os.fsencode(target), b"tmpfs", flags, given.encode()) == 0:
            return
        if ctypes.get_errno() != errno.EINVAL:
            break
    _check(-1, "cannot mount a folder for credentials")


def make_read_only(target: str) -> None:
    """Let nobody write to a mount of ours any more. Raises RuntimeFailed."""
    flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _check(_libc().mount(None, os.fsencode(target), None, flags, None), f"cannot make {target} read-only")


def prepare_overlay(folder: str, *, like: str) -> tuple[str, str]:
    """Fresh upper and work folders below `folder`. The upper is what `/` shows: mode and owner are those of `like`."""
    upper, work = f"{folder}/upper", f"{folder}/work"
    os.makedirs(folder, mode=0o711, exist_ok=True)
    # A restored container brings its upper along.
    with suppress(FileExistsError):
        os.mkdir(upper, 0o755)
    os.mkdir(work, 0o700)
    wanted, made = os.stat(like), os.stat(upper)
    if (wanted.st_uid, wanted.st_gid) != (made.st_uid, made.st_gid):
        os.chown(upper, wanted.st_uid, wanted.st_gid)
    if wanted.st_mode != made.st_mode:
        os.chmod(upper, wanted.st_mode & 0o7777)
    return upper, work
