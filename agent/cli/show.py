# SPDX-License-Identifier: Apache-2.0
"""Verbs that look: what the agent knows, as text for people or as its own JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from agent.cli import render
from agent.cli.arguments import JSON, NAME, Verb, option
from agent.cli.client import Bus, ask, tell
from agent.cli.names import NAMES, is_pattern, known, matching

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable


def inspect(args: Namespace) -> int:
    (text,) = tell("Inspect", "sb", args.name, args.spec, user=args.user)
    render.print_json(text)
    return 0


def top(args: Namespace) -> int:
    (text,) = tell("Top", "s", args.name, user=args.user)
    if args.json:
        render.print_json(text)
        return 0
    rows = [
        (
            str(each["pid"]),
            str(each["user"]),
            f"{each['cpu_percent']:.1f}",
            render.size(each["rss"]),
            _clock(each["time"]),
            each["command"] if isinstance(each["command"], str) else " ".join(each["command"]),
        )
        for each in json.loads(text)
    ]
    render.print_table(("PID", "USER", "%CPU", "RSS", "TIME", "COMMAND"), rows, right=("PID", "%CPU", "RSS", "TIME"))
    return 0


def _clock(seconds: float) -> str:
    """CPU time as ps(1) writes it: [H:]MM:SS."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def stats(args: Namespace) -> int:
    with Bus(user=args.user) as bus:
        names = matching(args.names, known(bus)) if any(map(is_pattern, args.names)) else args.names
        (text,) = bus.query("Stats", "as", names)
    if args.json:
        render.print_json(text)
    else:
        _print_stats(json.loads(text))
    return 0


def _print_stats(readings: list[dict[str, Any]]) -> None:
    """A table of readings; a dash where the host keeps no such figure."""
    header = ("NAME", "CPU TIME", "MEMORY", "LIMIT", "TASKS", "READ", "WRITTEN")
    rows = [
        (
            each["name"],
            _figure(each["cpu_usage_usec"], lambda usec: _clock(usec / 1e6)),
            _figure(each["memory_current"], render.size),
            _figure(each["memory_max"], render.size),
            _figure(each["pids_current"], str),
            _figure(each["io_read_bytes"], render.size),
            _figure(each["io_write_bytes"], render.size),
        )
        for each in readings
    ]
    if rows:
        render.print_table(header, rows, right=header[1:])


def _figure(value: float | None, show: Callable[[float], str]) -> str:
    return "-" if value is None else show(value)


def info(args: Namespace) -> int:
    (text,) = ask("Info", user=args.user)
    if args.json:
        render.print_json(text)
    else:
        render.print_tree(json.loads(text))
    return 0


def names(args: Namespace) -> int:
    """For shell completion: one name per line, and nothing at all if the agent does not answer."""
    with Bus(user=args.user) as bus:
        print("\n".join(known(bus)))
    return 0


VERBS = (
    Verb(
        "inspect",
        "print everything about one container as JSON",
        inspect,
        (NAME, option("--spec", action="store_true", help="print the OCI runtime's config.json instead")),
        "",
        "  cleat inspect web | jq .definition\n  cleat inspect --spec web | jq .mounts",
    ),
    Verb("top", "show the processes of one container", top, (NAME, JSON), "", "  cleat top web"),
    Verb(
        "stats",
        "show what containers use: CPU, memory, tasks, I/O",
        stats,
        (NAMES, JSON),
        "Print once what the containers' control groups have counted. For a view that moves, see "
        "systemd-cgtop cleat.slice.",
        "  cleat stats\n  cleat stats --json web",
    ),
    Verb("info", "show what the agent is and what it found on this host", info, (JSON,), "", "  cleat info"),
    Verb("__names", "print the names of all containers", names),
)
