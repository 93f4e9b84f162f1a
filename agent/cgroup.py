# SPDX-License-Identifier: Apache-2.0
"""The delegated part of the unified cgroup tree: sub-groups, members, figures (cgroups(7), kernel's cgroup-v2.rst).

systemd owns a unit's own group; what lies below a unit with Delegate=yes is ours. Nothing here writes elsewhere.
"""

from __future__ import annotations

import functools
import os
import signal
from contextlib import suppress
from pathlib import Path

from agent import files
from agent.errors import ScopeFailed

SUPERVISOR = "supervisor"
PAYLOAD = "container"
CGROUPFS_PARENT = "cleat"
"""The group below which all lies for containers that have no scope."""


@functools.cache
def mount_point() -> Path:
    """Where the unified hierarchy is mounted: /sys/fs/cgroup, or /sys/fs/cgroup/unified on a hybrid host."""
    hybrid = Path("/sys/fs/cgroup/unified")
    return hybrid if (hybrid / "cgroup.procs").exists() else Path("/sys/fs/cgroup")


@functools.cache
def available_controllers() -> frozenset[str]:
    """Controllers that the host's systemd can hand on (cgroup.controllers of the root)."""
    try:
        return frozenset((mount_point() / "cgroup.controllers").read_text().split())
    except OSError:
        return frozenset()


def of_process(pid: int) -> str:
    """The unified cgroup path of a process ("" when it is gone), line `0::` of /proc/PID/cgroup."""
    try:
        lines = files.read(f"/proc/{pid}/cgroup").splitlines()
    except OSError:
        return ""
    return next((line[3:].decode(errors="surrogateescape") for line in lines if line.startswith(b"0::")), "")


def directory(path: str) -> Path:
    return mount_point() / path.lstrip("/")


def is_ours(path: str) -> bool:
    """Whether the path lies in a scope or group of ours: nothing else may be written, whatever a caller got wrong."""
    parts = path.split("/")
    scopes = [part for part in parts if part.startswith(("cleat-", "cleat:", "cleat.")) and part.endswith(".scope")]
    return (bool(scopes) or CGROUPFS_PARENT in parts[:-1]) and ".." not in parts


def move(path: str, pid: int) -> None:
    """Create the group `path` if need be and move `pid` into it. Raises ScopeFailed with the kernel's reason."""
    folder = f"{mount_point()}/{path.lstrip('/')}"
    if not is_ours(path):
        raise ScopeFailed(f"cgroup {path!r} is not in a scope of the agent")
    try:
        with suppress(FileExistsError):
            os.mkdir(folder, 0o755)
        fd = os.open(f"{folder}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"%d" % pid)
        finally:
            os.close(fd)
    except OSError as e:
        raise ScopeFailed(f"cannot move process {pid} to cgroup {path}", why=e.strerror or "") from e


def contains(path: str, pid: int) -> bool:
    """Whether a process lives in the group or below it."""
    group = of_process(pid)
    return group == path or group.startswith(path.rstrip("/") + "/")


def processes(path: str) -> list[int]:
    """All processes in the group and below it; empty when the group is gone."""
    found: list[int] = []
    for folder, _, names in os.walk(directory(path)) if is_ours(path) else ():
        if "cgroup.procs" in names:
            with suppress(OSError):
                found += [int(line) for line in Path(folder, "cgroup.procs").read_text().split()]
    return found


def signal_all(path: str, signum: int, *, but: int = 0) -> None:
    """Send a signal to every process in the group and below but one, each verified to be there when it is held."""
    for pid in processes(path):
        if pid == but:
            continue
        with suppress(OSError):
            fd = os.pidfd_open(pid)
            try:
                if contains(path, pid):
                    signal.pidfd_send_signal(fd, signum)
            finally:
                os.close(fd)


def kill(path: str) -> bool:
    """SIGKILL everything in the group and below through cgroup.kill (Linux 5.14); False when it is not there."""
    return write(path, "cgroup.kill", "1")


def remove(path: str) -> None:
    """Remove an empty group and its empty children, deepest first; what still has members stays."""
    for folder, _, _ in os.walk(directory(path), topdown=False) if is_ours(path) else ():
        with suppress(OSError):
            os.rmdir(folder)


def read_counter(path: str, file: str, key: str = "") -> int | None:
    """A number out of a cgroup file: the whole content, or the value of `key` in a flat keyed file; None = absent."""
    try:
        text = Path(directory(path), file).read_text()
    except OSError:
        return None
    if not key:
        value = text.strip()
        return int(value) if value.isdigit() else None
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdigit():
            return int(value)
    return None


def was_oom_killed(path: str) -> bool:
    """Whether the kernel killed a process of this group for lack of memory (memory.events, oom_kill)."""
    return bool(read_counter(path, "memory.events", "oom_kill"))


def write(path: str, file: str, value: str) -> bool:
    """Write a cgroup file below a delegated group; False when it is not there or not ours to write."""
    if not is_ours(path):
        return False
    try:
        Path(directory(path), file).write_text(value)
    except OSError:
        return False
    return True
