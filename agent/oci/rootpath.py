# SPDX-License-Identifier: Apache-2.0
"""Looking into a root file system whose content is an attacker's: openat2(2) with RESOLVE_IN_ROOT.

The kernel resolves every symlink and every ".." as if the root were "/", also while somebody else changes
it. Only regular files are ever opened for reading: a device could do anything on open(2), a FIFO would
block.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import InvalidArgument, Unsupported

_SYS_OPENAT2 = 437  # the same on every architecture that Linux numbers in common (all but alpha)
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_ATTEMPTS = 32


_OPEN_HOW = struct.Struct("=QQQ")  # struct open_how of linux/openat2.h: flags, mode, resolve


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _openat2(directory: int, path: bytes, how: bytes) -> int:
    # Wrapped one by one: a variadic C function is told nothing about the types.
    arguments = (ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(directory), ctypes.c_char_p(path))
    return int(_libc().syscall(*arguments, ctypes.c_char_p(how), ctypes.c_size_t(len(how))))


def open_in_root(root_fd: int, path: str, flags: int) -> int:
    """An fd (CLOEXEC, never blocking on open) of `path` as seen in the root that `root_fd` is.

    Raises OSError as open(2) does (ELOOP for a magic link), Unsupported on a kernel older than 5.6.
    """
    if "\0" in path:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    # openat2 refuses flags that O_PATH would ignore.
    extra = os.O_CLOEXEC if flags & os.O_PATH else os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    how = _OPEN_HOW.pack(flags | extra, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    error = errno.EAGAIN
    for _ in range(_ATTEMPTS):
        fd = _openat2(root_fd, os.fsencode(path), how)
        if fd >= 0:
            return fd
        error = ctypes.get_errno()
        # EAGAIN: something was renamed meanwhile and the kernel could not tell whether ".." stays inside.
        if error not in {errno.EAGAIN, errno.EINTR}:
            break
    if error == errno.ENOSYS:
        raise Unsupported("openat2 is missing", why="the kernel is older than 5.6", hint="use a newer kernel")
    raise OSError(error, os.strerror(error), path)


@contextmanager
def opened_root(root: str | os.PathLike[str]) -> Iterator[int]:
    """A root file system's folder as an fd for `open_in_root`."""
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def read_in_root(root: str | os.PathLike[str] | int, path: str, limit: int) -> bytes:
    """The content of a regular file below `root` (a folder, or its fd).

    Raises OSError as open(2) does, InvalidArgument when it is no regular file or larger than `limit` bytes.
    """
    if not isinstance(root, int):
        with opened_root(root) as fd:
            return read_in_root(fd, path, limit)
    handle = open_in_root(root, path, os.O_PATH)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise _unfit(path, "not a regular file")
        # Opened again by its handle: what was looked at is what is read.
        with Path(f"/proc/self/fd/{handle}").open("rb", buffering=0) as file:
            data = _read_up_to(file.fileno(), limit + 1)
    finally:
        os.close(handle)
    if len(data) > limit:
        raise _unfit(path, f"larger than {limit} bytes")
    return data


def _read_up_to(fd: int, size: int) -> bytes:
    parts: list[bytes] = []
    while size > 0 and (data := os.read(fd, size)):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def _unfit(path: str, why: str) -> InvalidArgument:
    return InvalidArgument(
        f"cannot read {path} of the root file system", why=why, hint="look at the image, or at rootfs"
    )
