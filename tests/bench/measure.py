# SPDX-License-Identifier: Apache-2.0
"""Figures of one host, from inside it: wall time, processor time of everything, memory, wake-ups.

Standard library only. Runs in the test host, beside contestants.py and inside.py; tests/bench/run puts them there.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Figures = dict[str, float]
_QUIET_SEC, _QUIET_SHARE, _QUIET_MAX = 0.3, 0.03, 60.0


def run(*argv: str, check: bool = True, timeout: float = 300.0) -> str:
    """A command's output; its own words are in the error."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode:
        raise SystemExit(
            f"{' '.join(argv)[:300]}: exit code {done.returncode}\n{done.stdout[-500:]}{done.stderr[-1500:]}"
        )
    return done.stdout


def read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def processor_ms() -> float:
    """Processor time of the whole host so far, all processors, by its top cgroup."""
    for line in read("/sys/fs/cgroup/cpu.stat").splitlines():
        if line.startswith("usage_usec"):
            return int(line.split()[1]) / 1000
    raise SystemExit("cpu.stat has no usage_usec")


@contextmanager
def measured(count: int) -> Iterator[Figures]:
    """Fills in what the block took for each of `count`: ms of wall time, ms of processor time."""
    figures: Figures = {}
    processor, wall = processor_ms(), time.monotonic()
    yield figures
    wall, processor = time.monotonic() - wall, processor_ms() - processor
    figures["wall_ms"], figures["processor_ms"] = wall * 1000 / count, processor / count


def quiet() -> float:
    """Waits until the host does next to nothing; the processor time (ms) that this took."""
    first = before = processor_ms()
    deadline = time.monotonic() + _QUIET_MAX
    while time.monotonic() < deadline:
        time.sleep(_QUIET_SEC)
        now = processor_ms()
        if now - before < _QUIET_SEC * 1000 * _QUIET_SHARE:
            return now - first
        before = now
    return processor_ms() - first


def median(values: Sequence[float]) -> float:
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def median_ms(times: int, command: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """The median wall time of a command after one unmeasured run; `before` is not counted."""
    found = []
    for i in range(times + 1):
        before()
        started = time.monotonic()
        command()
        if i:
            found.append((time.monotonic() - started) * 1000)
    return median(found)


def unit_property(unit: str, name: str) -> str:
    return run("systemctl", "show", f"--property={name}", "--value", unit).strip()


def agent_pid() -> int:
    return int(unit_property("cleat.service", "MainPID"))


def proportional_set_kb(pid: int) -> int:
    """Pss, proc_pid_smaps(5)."""
    for line in read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def wakeups(pid: int) -> int:
    """Voluntary context switches of all its threads so far, proc_pid_status(5)."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        for line in read(f"/proc/{pid}/task/{task}/status").splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def journal(*match: str, since: str) -> list[dict[str, Any]]:
    run("journalctl", "--sync")
    lines = run("journalctl", "-q", "-o", "json", f"--after-cursor={since}", *match, check=False).splitlines()
    return [json.loads(line) for line in lines]


def cursor() -> str:
    run("journalctl", "--sync")
    line = run("journalctl", "-n", "1", "-q", "-o", "json", "--output-fields=MESSAGE")
    return str(json.loads(line)["__CURSOR"])
