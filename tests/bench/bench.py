# SPDX-License-Identifier: Apache-2.0
"""The benchmark as a whole: one host, all contestants in turn, several rounds, medians and ratios. Nothing is asserted
about seconds: machines differ, and what else runs on them; ratios within one run are what counts.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.host import nspawn
from tests.host.hosts import Host, build_package

HERE = Path(__file__).resolve().parent
INSIDE = "/var/tmp/bench"
CONTESTANTS = ("floor", "floor-minimal", "cleat", "podman", "quadlet")
TITLES = {
    "floor": "floor: conmon + crun, 2 at a time, cleat's spec",
    "floor-minimal": "floor with the spec of `crun spec`",
    "cleat": "cleat: definitions dropped, reload, until ready",
    "podman": "podman run -d, 4 at a time",
    "quadlet": "Quadlet: daemon-reload + systemctl start",
}
Figures = dict[str, float]


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    starts: int
    rounds: int
    definitions: int
    reloads: int
    residents: tuple[int, ...]
    adoptions: int
    idle_sec: int
    calls: int


FULL = Size(starts=100, rounds=5, definitions=1000, reloads=5, residents=(100, 500), adoptions=3, idle_sec=120, calls=7)
QUICK = Size(starts=20, rounds=1, definitions=100, reloads=1, residents=(20,), adoptions=1, idle_sec=3, calls=1)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def booted(name: str) -> Iterator[Host]:
    try:
        host = Host(nspawn.boot(name))
        host.install(build_package())
        host.run(["systemctl", "start", "cleat.service"])
        yield host
    finally:
        nspawn.stop(name)


def prepare(host: Host) -> None:
    host.rootfs("bench")
    server = host.rootfs("bench-server", "/usr/bin/python3")
    host.run(f"mkdir -p {server}/usr/lib && cp -a /usr/lib/python3.* {server}/usr/lib/")
    for file in ("measure.py", "contestants.py", "inside.py"):
        host.write(f"{INSIDE}/tests/bench/{file}", (HERE / file).read_text(encoding="utf-8"))


def ask(host: Host, part: str, *arguments: object) -> Figures:
    argv = ["python3", "-B", "-m", "tests.bench.inside", part, *map(str, arguments)]
    began = time.monotonic()
    figures: Figures = json.loads(host.run(argv, timeout=900, env={"PYTHONPATH": INSIDE}).stdout)
    shown = ", ".join(f"{key} {value:.2f}" for key, value in figures.items())
    say(f"{part} {' '.join(map(str, arguments))} ({time.monotonic() - began:.0f} s): {shown}")
    return figures


def starts(host: Host, size: Size) -> dict[str, Figures]:
    """All contestants in every round, so that what else happens on the machine hits each of them."""
    found: dict[str, list[Figures]] = {who: [] for who in CONTESTANTS}
    for turn in range(size.rounds):
        for who in CONTESTANTS[turn % 2 :] + CONTESTANTS[: turn % 2]:
            found[who].append(ask(host, "start", who, size.starts))
    return {who: {key: statistics.median(one[key] for one in rows) for key in rows[0]} for who, rows in found.items()}


def measure(host: Host, size: Size) -> dict[str, Any]:
    """Everything, on a host with the cleat package installed and running."""
    prepare(host)
    result: dict[str, Any] = {"size": size.__dict__, "processors": os.cpu_count(), "start": starts(host, size)}
    result["reload"] = ask(host, "reload", size.definitions, size.reloads)
    result["resident"] = {}
    for i, count in enumerate(size.residents):
        result["resident"][str(count)] = ask(host, "resident", count, size.adoptions, 0 if i else size.idle_sec)
    result["commands"] = ask(host, "commands", size.calls)
    result["steps"] = ask(host, "steps", 1 + size.calls)
    return result


def table(result: dict[str, Any]) -> str:
    return "\n".join([*_starts(result), *_residents(result), *_others(result), *_steps(result)])


def _starts(result: dict[str, Any]) -> Iterator[str]:
    size, rows = result["size"], result["start"]
    floor, cleat = rows["floor"], rows["cleat"]
    yield f"{size['starts']} containers, {result['processors']} processors, {size['rounds']} rounds; medians, ms each"
    yield f"{'':50}{'wall':>8}{'x floor':>9}{'cleat is':>10}{'CPU':>8}{'x floor':>9}{'CPU later':>11}"
    for who, figures in rows.items():
        wall, processor, later = (figures.get(key, 0.0) for key in ("wall_ms", "processor_ms", "processor_after_ms"))
        faster = "" if who == "cleat" else f"{wall / cleat['wall_ms']:.2f} x"
        yield (
            f"{TITLES[who]:50}{wall:8.2f}{wall / floor['wall_ms']:9.2f}{faster:>10}"
            f"{processor:8.2f}{processor / floor['processor_ms']:9.2f}{later:11.2f}"
        )
    yield f"Quadlet's contains one daemon-reload of {rows['quadlet']['daemon_reload_ms']:.0f} ms"


def _residents(result: dict[str, Any]) -> Iterator[str]:
    yield ""
    for count, figures in result["resident"].items():
        yield (
            f"agent with {count} containers: Pss {figures['pss_kb'] / 1024:.1f} MB, after kill -9 "
            f"{figures['pss_adopted_kb'] / 1024:.1f} MB; all taken over {figures['adopt_ms']:.0f} ms after its exec, "
            f"{figures['kill_to_adopted_ms']:.0f} ms after the kill, none restarted"
        )
        if "idle_wakeups" in figures:
            yield (
                f"    idle: {figures['idle_wakeups']:.0f} wake-ups, {figures['idle_processor_ms']:.1f} ms CPU "
                f"in {figures['idle_sec']:.0f} s"
            )
        if "status_ms" in figures:
            yield f"    {_against('cleat status', figures['status_ms'], 'podman ps (1)', figures['podman_ps_ms'])}"


def _others(result: dict[str, Any]) -> Iterator[str]:
    reload, commands, count = result["reload"], result["commands"], result["size"]["definitions"]
    yield ""
    yield _against(f"reload of {count} unchanged", reload["cleat_ms"], "daemon-reload", reload["daemon_reload_ms"])
    yield f"    (daemon-reload without Quadlets: {reload['daemon_reload_without_ms']:.0f} ms)"
    yield _against("cleat start", commands["start_ms"], "systemctl start cleat@", commands["handle_ms"])
    yield _against(
        "first answer on demand", commands["on_demand_ms"], "Quadlet + .socket", commands["quadlet_on_demand_ms"]
    )


def _against(ours: str, our_ms: float, theirs: str, their_ms: float) -> str:
    return f"{ours} {our_ms:.1f} ms, {theirs} {their_ms:.1f} ms: {their_ms / our_ms:.2f} x"


def _steps(result: dict[str, Any]) -> Iterator[str]:
    steps = result["steps"]
    total = sum(steps.values()) or 1.0
    yield ""
    yield "where one start goes (alone, under strace, which adds to everything)"
    for step, spent in steps.items():
        yield f"    {step:45}{spent:8.2f} ms{spent * 100 / total:6.0f} %"
