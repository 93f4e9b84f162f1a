# SPDX-License-Identifier: Apache-2.0
"""Runs inside a test host: what of containers is still there, and waits (by events) for it to go away.

    settle.py list            print what there is now
    settle.py wait BEFORE     wait until there is no more than in BEFORE (the output of `list`), 10 s at most

Prints JSON: leftovers, the agent (pid and start time) and its open fds.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

WAIT_SEC = 10.0
RUN, SLICE = Path("/run/cleat"), Path("/sys/fs/cgroup/cleat.slice")
# inotify(7)
IN_DELETE, IN_MOVED_FROM, IN_DELETE_SELF = 0x200, 0x40, 0x400


def scopes() -> list[str]:
    command = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "cleat-*.scope"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [f"unit {line.split()[0]} ({line.split()[3]})" for line in lines if line.strip()]


def cgroups() -> list[str]:
    return [f"cgroup {path}" for path in SLICE.rglob("*") if path.is_dir()] if SLICE.is_dir() else []


def conmons() -> dict[str, int]:
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if (folder / "comm").read_text(encoding="ascii").strip() == "conmon":
                    found[f"process {folder.name} (conmon)"] = int(folder.name)
            except OSError:
                continue
    return found


def mounts() -> list[str]:
    points = [line.split()[4] for line in Path("/proc/1/mountinfo").read_text(encoding="utf-8").splitlines()]
    return [f"mount {point}" for point in points if point.startswith(("/run/cleat/", "/var/lib/cleat/"))]


def files() -> list[str]:
    """Everything in /run/cleat but what is not a container's: the agent's folders, the runtimes' roots and caches."""
    if not RUN.is_dir():
        return []
    return [f"file {path}" for path in RUN.rglob("*") if not (path.is_dir() and is_shared(path)) and not is_cache(path)]


def is_shared(folder: Path) -> bool:
    """Made once, kept for later containers; below `foreground` are those of `cleat run`."""
    parent = RUN / "foreground" if folder.is_relative_to(RUN / "foreground") else RUN
    return folder.parent in (RUN, parent, parent / "runtime")


def is_cache(path: Path) -> bool:
    """crun keeps compiled seccomp filters for all containers beside their states."""
    return ".cache" in path.parts


def overlays() -> list[str]:
    folder = Path("/var/lib/cleat/overlay")
    return [f"folder {path}" for path in folder.iterdir()] if folder.is_dir() else []


def present() -> set[str]:
    return {*scopes(), *cgroups(), *conmons(), *mounts(), *files(), *overlays()}


def agent() -> tuple[str, list[str]]:
    show = ["systemctl", "show", "--property=MainPID", "--value", "cleat.service"]
    pid = subprocess.run(show, capture_output=True, text=True, check=True).stdout.strip()
    if pid in ("", "0"):
        return "", []
    try:
        start = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        folder = Path(f"/proc/{pid}/fd")
        return f"{pid}-{start}", sorted(f"{fd.name} -> {fd.readlink()}" for fd in folder.iterdir())
    except OSError:
        return "", []


class Watch:
    """Wakes up when a watched file or folder, a mount or a conmon goes away."""

    def __init__(self) -> None:
        self.poll = select.poll()
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.inotify = self.libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        self.poll.register(self.inotify, select.POLLIN)
        self.mounts = Path("/proc/1/mountinfo").open(encoding="utf-8")  # noqa: SIM115 - as long as the process
        self.poll.register(self.mounts, select.POLLPRI)
        self.pidfds: dict[int, int] = {}

    def look(self) -> None:
        """Before the state is read, so that nothing happens unseen in between."""
        for folder in [RUN, *RUN.rglob("*"), SLICE, *SLICE.rglob("*")]:
            if folder.is_dir():
                flags = IN_DELETE | IN_MOVED_FROM | IN_DELETE_SELF
                self.libc.inotify_add_watch(self.inotify, os.fsencode(folder), flags)
        for pid in conmons().values():
            if pid not in self.pidfds:
                try:
                    self.pidfds[pid] = os.pidfd_open(pid)
                except ProcessLookupError:
                    continue
                self.poll.register(self.pidfds[pid], select.POLLIN)

    def wait(self, seconds: float) -> None:
        for fd, _ in self.poll.poll(seconds * 1000):
            if fd == self.inotify:
                os.read(fd, 65536)
            elif fd == self.mounts.fileno():
                self.mounts.seek(0)
                self.mounts.read()
            else:
                self.poll.unregister(fd)


def settled(before: set[str]) -> set[str]:
    deadline, watch = time.monotonic() + WAIT_SEC, Watch()
    while True:
        watch.look()
        left = present() - before
        if not left or (remaining := deadline - time.monotonic()) <= 0:
            return left
        watch.wait(remaining)


def main() -> None:
    command, *rest = sys.argv[1:]
    left = present() if command == "list" else settled(set(json.loads(rest[0])["leftovers"]))
    pid, fds = agent()
    json.dump({"leftovers": sorted(left), "agent": pid, "fds": fds}, sys.stdout)


main()
