# SPDX-License-Identifier: Apache-2.0
"""Namespaces that a container shares: `container:NAME` of a running one, `ns:/path` of the host.

They are opened and looked at here, and handed to the runtime as fds of this process (/proc/PID/fd/N): what was checked
is what is joined, whatever becomes of the other container's pid or of the path meanwhile.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping

from agent.definition.model import Container
from agent.errors import CleatError, InvalidState
from agent.process import ProcessRef

_NS_GET_NSTYPE = 0xB703  # ioctl_nsfs(2)
_CLONE_NEWNET = 0x40000000

PayloadPid = Callable[[str], int | None]


class Shared:
    """Paths by kind ("network", "pid", "ipc", "uts"), good until close()."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def add(self, kind: str, fd: int) -> None:
        self._fds[kind] = fd

    def path(self, kind: str) -> str:
        fd = self._fds.get(kind)
        return "" if fd is None else f"/proc/{os.getpid()}/fd/{fd}"

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])

    def __del__(self) -> None:
        # The net below close(), for a start that fails in between.
        self.close()


def wanted(container: Container) -> Mapping[str, tuple[str, str]]:
    """Kind -> (key, mode) of all that is shared with something else than the host."""
    modes = {
        "network": ("network.mode", container.network.mode),
        "pid": ("security.pid", container.security.pid),
        "ipc": ("security.ipc", container.security.ipc),
        "uts": ("security.uts", container.security.uts),
    }
    return {kind: (key, mode) for kind, (key, mode) in modes.items() if mode.startswith(("container:", "ns:"))}


def open_shared(container: Container, payload_pid: PayloadPid) -> Shared:
    """Raises CleatError: the other container does not run, or the path is no network namespace."""
    shared = Shared()
    try:
        for kind, (key, mode) in wanted(container).items():
            how, _, what = mode.partition(":")
            if how == "ns":
                shared.add(kind, _of_path(what, container.name, key))
            else:
                shared.add(kind, _of(what, kind, container.name, key, payload_pid))
    except CleatError:
        shared.close()
        raise
    return shared


def _of(other: str, kind: str, container: str, key: str, payload_pid: PayloadPid) -> int:
    pid = payload_pid(other)
    payload = ProcessRef.of(pid) if pid else None
    if payload is not None:
        try:
            fd = os.open(f"/proc/{payload.pid}/ns/{_FILES[kind]}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            fd = -1
        # Asked again with the fd in hand: it was this process's if this is still the one.
        if fd >= 0 and payload.is_alive() and payload_pid(other) == payload.pid:
            return fd
        if fd >= 0:
            os.close(fd)
    raise InvalidState(
        f"{other} does not run, so nothing of it can be shared",
        container=container,
        key=key,
        hint=f'add after = ["{other}"] and requires = ["{other}"]',
    )


_FILES = {"network": "net", "pid": "pid", "ipc": "ipc", "uts": "uts"}


def _of_path(path: str, container: str, key: str) -> int:
    hint = "make one with: ip netns add NAME"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        raise CleatError(f"cannot open {path}", container=container, key=key, why=e.strerror or "", hint=hint) from e
    try:
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != _CLONE_NEWNET:
        os.close(fd)
        raise CleatError(f"{path} is no network namespace", container=container, key=key, hint=hint)
    return fd
