# SPDX-License-Identifier: Apache-2.0
"""Small files, whole, with no system call more than it takes: a start reads and writes a dozen of them."""

from __future__ import annotations

import os

_SMALL = 65536


def read(path: str) -> bytes:
    """All of a file. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = part = os.read(fd, _SMALL)
        # A short read is the end of a regular file, and of those in /proc that are read here.
        while len(part) == _SMALL:
            part = os.read(fd, _SMALL)
            data += part
    finally:
        os.close(fd)
    return data


def write_new(path: str, data: bytes, mode: int = 0o600) -> None:
    """Create a file that must not be there yet. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
    finally:
        os.close(fd)
