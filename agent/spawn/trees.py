# SPDX-License-Identifier: Apache-2.0
"""Detached mounts: a place of the host mounted once more, and changed before anybody can see it.

open_tree(2), mount_setattr(2), move_mount(2). All raise OSError.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct

# The same numbers on every architecture that Linux numbers in common (all but alpha).
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE, _AT_EMPTY_PATH = 0x1, 0x1000
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_SYMLINKS = 0x4, 0x10
_AT_FDCWD = -100
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_IDMAP = 0x1, 0x100000
_MOUNT_ATTR = struct.Struct("=QQQQ")  # struct mount_attr of linux/mount.h: set, clear, propagation, userns fd


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: ctypes.c_int | ctypes.c_uint | ctypes.c_size_t | bytes) -> int:
    # Wrapped one by one: a variadic C function is told nothing about the types.
    result = int(_libc().syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def read_only(path: str) -> int:
    """What is at `path`, through which nobody can write. An fd, close-on-exec."""
    return _changed(path, _MOUNT_ATTR_RDONLY)


def id_mapped(path: str, user_namespace: int) -> int:
    """What is at `path`, with owners shifted as the user namespace says. An fd, close-on-exec."""
    return _changed(path, _MOUNT_ATTR_IDMAP, user_namespace)


def _changed(path: str, attributes: int, user_namespace: int = 0) -> int:
    """Without what is mounted below `path`."""
    flags = ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC)
    tree = _syscall(_SYS_OPEN_TREE, ctypes.c_int(_AT_FDCWD), os.fsencode(path), flags)
    try:
        _set(tree, attributes, user_namespace)
    except OSError:
        os.close(tree)
        raise
    return tree


def _set(tree: int, attributes: int, user_namespace: int) -> None:
    wanted = _MOUNT_ATTR.pack(attributes, 0, 0, user_namespace)
    size = ctypes.c_size_t(len(wanted))
    _syscall(_SYS_MOUNT_SETATTR, ctypes.c_int(tree), b"", ctypes.c_uint(_AT_EMPTY_PATH), wanted, size)


def attach(tree: int, target: str) -> None:
    """Mount it at `target`, in the mount namespace of the moment. It can be done once."""
    flags = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_SYMLINKS)
    _syscall(_SYS_MOVE_MOUNT, ctypes.c_int(tree), b"", ctypes.c_int(_AT_FDCWD), os.fsencode(target), flags)
