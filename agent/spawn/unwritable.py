# SPDX-License-Identifier: Apache-2.0
"""Programs whose file cannot be written to through a process that runs them: they are run from a read-only mount.

An OCI runtime becomes the container's first process, through whose /proc/PID/exe a payload could write to the runtime
of the host (CVE-2019-5736). crun(1) guards against that by running itself a second time from a read-only mount, at
every call; it does not where it finds itself on one already (crun's src/libcrun/cloned_binary.c, since 1.8), which
saves half of its time. Where no such mount can be had, without root or on an old kernel, it is left to the runtime.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NamedTuple

from agent.spawn import trees


class _Held(NamedTuple):
    identity: tuple[int, int]
    fd: int


_held: dict[str, _Held] = {}


def opened(path: str) -> int:
    """An fd by which to execute the file at `path`, which stays ours; -1 where it is to be executed by its path."""
    try:
        found = os.stat(path)
        identity = found.st_dev, found.st_ino
        held = _held.get(path)
        if held is None or held.identity != identity:
            # Another file than before: a package was upgraded.
            forget(path)
            held = _held[path] = _Held(identity, _open(path))
    except OSError:
        return -1
    return held.fd


def forget(path: str) -> None:
    """Close what is held for `path`."""
    held = _held.pop(path, None)
    if held is not None and held.fd >= 0:
        os.close(held.fd)


def _open(path: str) -> int:
    with open(path, "rb") as file:
        # A script's interpreter would be given the name of an fd that is closed by then.
        if file.read(4) != b"\x7fELF":
            return -1
    try:
        return trees.read_only(path)
    except OSError:
        return -1


def cover(path: str) -> None:
    """Mount the file at `path` over itself, in the mount namespace of the moment."""
    if opened(path) < 0:
        return
    with suppress(OSError):
        tree = trees.read_only(path)
        try:
            trees.attach(tree, path)
        finally:
            os.close(tree)
