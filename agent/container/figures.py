# SPDX-License-Identifier: Apache-2.0
"""Figures of a running container: its use of the host, and its processes.

From the cgroup's files where the controller is there (kernel's cgroup-v2.rst), else summed over the processes of the
cgroup out of /proc. A field that neither knows is None.
"""

from __future__ import annotations

import functools
import importlib
import pwd
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from types import ModuleType

import msgspec

from agent import cgroup
from agent.container.running import Running
from agent.systemd.text import clean

_COMMAND_MAX = 512
_SUMMED = 4096  # processes that are looked at one by one
_IO_KEYS = {"rbytes": "read_bytes", "wbytes": "write_bytes"}


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """One reading. `cpu_usage_usec` counts up since the start; `time` is when it was read (Unix seconds)."""

    name: str
    id: str
    time: float
    cpu_usage_usec: int | None = None
    cpu_user_usec: int | None = None
    cpu_system_usec: int | None = None
    memory_current: int | None = None
    memory_peak: int | None = None
    memory_max: int | None = None
    memory_swap: int | None = None
    pids_current: int = 0
    pids_max: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    oom_kills: int | None = None
    source: str = "cgroup"


class ProcessRow(msgspec.Struct, frozen=True, kw_only=True):
    """A process inside, as the host sees it. `cpu_percent` is the mean of its whole life, `time` its CPU seconds."""

    pid: int
    user: str
    cpu_percent: float
    rss: int
    time: float
    started_at: float
    command: str


def stats(name: str, running: Running) -> Stats:
    """A reading of one container; only small files are read."""
    path, limits = running.payload_cgroup, running.cgroup
    pids = cgroup.processes(path)
    io = io_totals(_text(path, "io.stat"))
    cpu = cgroup.read_counter(path, "cpu.stat", "usage_usec")
    memory = cgroup.read_counter(path, "memory.current")
    found = Stats(
        name=name,
        id=running.id,
        time=time.time(),
        cpu_usage_usec=cpu,
        cpu_user_usec=cgroup.read_counter(path, "cpu.stat", "user_usec"),
        cpu_system_usec=cgroup.read_counter(path, "cpu.stat", "system_usec"),
        memory_current=memory,
        memory_peak=cgroup.read_counter(path, "memory.peak"),
        memory_max=_tightest(path, limits, "memory.max"),
        memory_swap=cgroup.read_counter(path, "memory.swap.current"),
        pids_current=_or(cgroup.read_counter(path, "pids.current"), len(pids)),
        pids_max=_tightest(path, limits, "pids.max"),
        io_read_bytes=io.get("read_bytes"),
        io_write_bytes=io.get("write_bytes"),
        oom_kills=cgroup.read_counter(path, "memory.events", "oom_kill"),
    )
    return found if cpu is not None and memory is not None else _summed(found, pids)


def _or(value: int | None, other: int) -> int:
    return other if value is None else value


def _text(path: str, file: str) -> str:
    try:
        return (cgroup.directory(path) / file).read_text()
    except OSError:
        return ""


def _tightest(path: str, above: str, file: str) -> int | None:
    """The lower limit of the payload's group and of the scope, in which conmon is counted too; None = no limit."""
    found = [cgroup.read_counter(group, file) for group in (path, above)]
    return min((value for value in found if value is not None), default=None)


def io_totals(text: str) -> dict[str, int]:
    """Bytes over all devices, out of io.stat's lines `MAJ:MIN rbytes=1 wbytes=2 ...`; {} without the controller."""
    totals: dict[str, int] = {}
    for line in text.splitlines():
        for item in line.split()[1:]:
            key, _, value = item.partition("=")
            name = _IO_KEYS.get(key)
            if name and value.isdigit():
                totals[name] = totals.get(name, 0) + int(value)
    return totals


@functools.cache
def _psutil() -> ModuleType:
    """Loaded when figures are first asked for: it costs an agent that nobody asks several megabytes."""
    return importlib.import_module("psutil")


def _gone() -> tuple[type[Exception], ...]:
    library = _psutil()
    return (library.NoSuchProcess, library.ZombieProcess, library.AccessDenied, OSError)


def _summed(found: Stats, pids: Sequence[int]) -> Stats:
    """The same with CPU time and memory of the processes of now, where the controllers are missing."""
    user = system = 0.0
    rss = 0
    for pid in pids[:_SUMMED]:
        with suppress(*_gone()):
            process = _psutil().Process(pid)
            with process.oneshot():
                times = process.cpu_times()
                user += times.user + times.children_user
                system += times.system + times.children_system
                rss += process.memory_info().rss
    if found.cpu_usage_usec is None:
        found = msgspec.structs.replace(
            found,
            cpu_usage_usec=int((user + system) * 1e6),
            cpu_user_usec=int(user * 1e6),
            cpu_system_usec=int(system * 1e6),
        )
    if found.memory_current is None:
        found = msgspec.structs.replace(found, memory_current=rss)
    return msgspec.structs.replace(found, source="processes")


def top(running: Running) -> list[ProcessRow]:
    """The processes inside, the container's first one first."""
    return rows(cgroup.processes(running.payload_cgroup)[:_SUMMED])


def rows(pids: Iterable[int]) -> list[ProcessRow]:
    """One row per process that is still there, by pid."""
    found = [row for row in map(_row, sorted(pids)) if row is not None]
    return sorted(found, key=lambda row: (row.started_at, row.pid))


def _row(pid: int) -> ProcessRow | None:
    try:
        process = _psutil().Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            started = process.create_time()
            used = times.user + times.system
            return ProcessRow(
                pid=pid,
                user=_user(process.uids().real),
                cpu_percent=round(100 * used / max(0.001, time.time() - started), 1),
                rss=process.memory_info().rss,
                time=round(used, 2),
                started_at=started,
                command=command_line(process.cmdline(), process.name()),
            )
    except _gone():
        return None


def command_line(argv: Sequence[str], name: str) -> str:
    """One line for people out of what the process says of itself; it may say anything."""
    text = " ".join(argv) if any(argv) else f"[{name}]"
    return clean(text.replace("\n", "\\n"), _COMMAND_MAX)


@lru_cache(maxsize=256)
def _user(uid: int) -> str:
    """The host's name of a user id, else the number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
