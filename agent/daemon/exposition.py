# SPDX-License-Identifier: Apache-2.0
"""States and figures of containers in Prometheus' text format (prometheus.io, "Exposition formats", 0.0.4); pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from agent.container.figures import Stats
from agent.status import State, Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Family(msgspec.Struct, frozen=True):
    """One metric; `get` gives None where a container has no such figure."""

    name: str
    kind: str
    help: str
    get: Callable[[Any], float | int | None]


def _seconds(usec: int | None) -> float | None:
    return None if usec is None else usec / 1e6


OF_STATUS: tuple[Family, ...] = (
    Family("cleat_container_ready", "gauge", "1 from readiness to the end.", lambda s: int(s.ready)),
    Family("cleat_container_healthy", "gauge", "1 healthy, 0 not; only with a health check.", lambda s: _health(s)),
    Family("cleat_container_restarts_total", "counter", "Restarts by the agent.", lambda s: s.restarts),
    Family("cleat_container_start_time_seconds", "gauge", "Start of the last run.", lambda s: s.started_at or None),
    Family("cleat_container_end_time_seconds", "gauge", "End of the last run.", lambda s: s.finished_at or None),
    Family("cleat_container_exit_code", "gauge", "Exit code of the last run that ended.", lambda s: s.exit_code),
    Family(
        "cleat_container_oom_killed", "gauge", "1 when memory ran out in the last run.", lambda s: int(s.oom_killed)
    ),
)
OF_STATS: tuple[Family, ...] = (
    Family("cleat_container_cpu_seconds_total", "counter", "Processor time.", lambda f: _seconds(f.cpu_usage_usec)),
    Family("cleat_container_memory_bytes", "gauge", "Memory in use.", lambda f: f.memory_current),
    Family("cleat_container_memory_peak_bytes", "gauge", "Most memory used in this run.", lambda f: f.memory_peak),
    Family("cleat_container_memory_limit_bytes", "gauge", "Limit of memory.", lambda f: f.memory_max),
    Family("cleat_container_swap_bytes", "gauge", "Swap in use.", lambda f: f.memory_swap),
    Family("cleat_container_tasks", "gauge", "Processes and threads.", lambda f: f.pids_current),
    Family("cleat_container_tasks_limit", "gauge", "Limit of processes and threads.", lambda f: f.pids_max),
    Family("cleat_container_read_bytes_total", "counter", "Read from block devices.", lambda f: f.io_read_bytes),
    Family("cleat_container_written_bytes_total", "counter", "Written to block devices.", lambda f: f.io_write_bytes),
    Family("cleat_container_oom_kills_total", "counter", "Processes killed for memory.", lambda f: f.oom_kills),
)
STATE = Family("cleat_container_state", "gauge", "1 for the state that the container is in.", lambda _: 1)
INFO = Family("cleat_agent_info", "gauge", "The agent's version.", lambda _: 1)


def _health(status: Status) -> int | None:
    return int(status.health == "healthy") if status.health else None


def escape(value: str) -> str:
    """A label's value."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _line(name: str, labels: dict[str, str], value: float) -> str:
    inside = ",".join(f'{key}="{escape(text)}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {value}\n"


def _header(family: Family) -> str:
    return f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}\n"


def text(version: str, statuses: Sequence[Status], stats: Iterable[Stats]) -> str:
    """The whole page. Container labels are `name` only, so that a restart goes on with the same series."""
    out = [_header(INFO), _line(INFO.name, {"version": version}, 1), _header(STATE)]
    for status in statuses:
        out += [_line(STATE.name, {"name": status.name, "state": state}, int(state is status.state)) for state in State]
    figures = tuple(stats)
    for families, rows in ((OF_STATUS, statuses), (OF_STATS, figures)):
        for family in families:
            values = [(row.name, family.get(row)) for row in rows]
            found = [_line(family.name, {"name": name}, value) for name, value in values if value is not None]
            out += [_header(family), *found] if found else []
    return "".join(out)
