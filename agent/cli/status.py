# SPDX-License-Identifier: Apache-2.0
"""`cleat status`: all containers as a table, one of them in detail."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from agent.cli import render
from agent.cli.arguments import JSON, Verb, natural, option
from agent.cli.client import ask
from agent.cli.names import NAMES, is_pattern, matching
from agent.errors import NoSuchContainer

if TYPE_CHECKING:
    from argparse import Namespace

NOT_RUNNING = 3
_UP = {"starting", "running", "paused", "stopping"}


def status(args: Namespace) -> int:
    """All containers as a table, or those named; exactly one without a pattern in detail."""
    single = len(args.names) == 1 and not is_pattern(args.names[0])
    (text,) = ask("GetStatus", "as", args.names if single else [], user=args.user)
    everything = json.loads(text)
    chosen, missing = _choose(everything, args.names)
    if args.json:
        render.print_json(text if chosen == everything else render.compact(chosen))
    elif single and chosen:
        _print_details(chosen[0], lines=args.lines, user=args.user)
    else:
        print_table(chosen, time.time())
    worst = max((render.report(error) for error in missing), default=0)
    if not args.names:
        return worst
    return max([worst, *(0 if each["state"] in {"running", "paused"} else NOT_RUNNING for each in chosen)])


def _choose(everything: list[dict[str, Any]], wanted: list[str]) -> tuple[list[dict[str, Any]], list[NoSuchContainer]]:
    if not wanted:
        return everything, []
    by_name = {each["name"]: each for each in everything}
    names = matching(wanted, list(by_name))
    missing = [NoSuchContainer("no such container", container=name) for name in names if name not in by_name]
    return [by_name[name] for name in names if name in by_name], missing


def print_table(statuses: list[dict[str, Any]], now: float) -> None:
    header = ("NAME", "STATE", "READY", "PID", "RESTARTS", "SINCE", "STATUS")
    rows = [
        (
            each["name"],
            each["state"],
            "yes" if each["ready"] else "no" if each["state"] in _UP else "-",
            str(each["pid"] or "-"),
            str(each["restarts"]),
            _since(each, now),
            summary(each),
        )
        for each in statuses
    ]
    if not rows:
        print("No containers are defined.", file=sys.stderr)
        return
    columns = render.terminal_columns()
    for row, each in zip(render.table(header, rows, right=("PID", "RESTARTS")), (None, *statuses), strict=True):
        before = sum(map(render.width, row[:-1])) + 2 * (len(row) - 1)
        if columns:
            row[-1] = render.cut(row[-1], max(columns - before, 10))
        if each:
            row[1] = render.paint(row[1], colour(each))
        print("  ".join(row).rstrip())


def _since(each: dict[str, Any], now: float) -> str:
    start = each["started_at"] if each["state"] in _UP else each["finished_at"]
    return render.span(now - start) if start else "-"


def summary(each: dict[str, Any]) -> str:
    """The one thing worth saying about a container."""
    if each["error"]:
        return str(each["error"])
    parts = [each["health"], each["status_text"]] if each["state"] in _UP else [_ending(each)]
    return ", ".join(part for part in parts if part)


def _ending(each: dict[str, Any]) -> str:
    if each["oom_killed"]:
        return "out of memory"
    code = each["exit_code"]
    # Nobody knows a code and there is no error: only a stop in the middle of a start ends so.
    return "" if code is None else "stopped before it ran" if code < 0 else f"exit code {code}"


def colour(each: dict[str, Any]) -> str:
    match each["state"]:
        case "running":
            return render.GREEN if each["ready"] and each["health"] != "unhealthy" else render.YELLOW
        case "failed":
            return render.RED
        case "inactive" | "exited":
            return ""
        case _:
            return render.YELLOW


def _print_details(each: dict[str, Any], *, lines: int, user: bool) -> None:
    dot = "●" if "utf" in (sys.stdout.encoding or "").lower() else "*"
    title = f"{each['name']} - {each['description']}" if each["description"] else each["name"]
    print(f"{render.paint(dot, colour(each))} {render.printable(title)}")
    for label, value in details(each, time.time()):
        text = render.printable(value)
        print(f"{label:>12}: {render.paint(text, colour(each)) if label == 'State' else text}")
    if lines:
        from agent.cli import logs

        logs.print_last(each, lines, user=user)


def details(each: dict[str, Any], now: float) -> list[tuple[str, str]]:
    """The labelled lines of `cleat status NAME`; what is empty is left out."""
    processes = f"{each['pid']}, conmon {each['conmon_pid']}" if each["pid"] else ""
    rows = [
        ("Definition", each["definition"]),
        ("State", _state_line(each, now)),
        ("Ended", _ended_line(each, now)),
        ("Error", each["error"]),
        ("Status", each["status_text"]),
        ("Health", ": ".join(part for part in (each["health"], each["health_output"].strip()) if part)),
        ("PID", processes),
        ("Restarts", str(each["restarts"])),
        ("Unit", each["unit"]),
        ("Image", each["image"]),
        ("ID", each["id"]),
        ("Log", each["log_path"]),
    ]
    return [(label, value) for label, value in rows if value]


def _state_line(each: dict[str, Any], now: float) -> str:
    text = str(each["state"])
    if each["state"] in _UP:
        text += ", ready" if each["ready"] else ", not ready"
        if each["started_at"]:
            text += f", since {_at(each['started_at'], now)}"
    return text


def _ended_line(each: dict[str, Any], now: float) -> str:
    if each["state"] in _UP or not each["finished_at"]:
        return ""
    return ", ".join(part for part in (_ending(each), _at(each["finished_at"], now)) if part)


def _at(when: float, now: float) -> str:
    return f"{render.moment(when)}; {render.span(now - when)} ago"


VERBS = (
    Verb(
        "status",
        "show containers: all as a table, one in detail",
        status,
        (
            NAMES,
            JSON,
            option("-n", "--lines", metavar="N", type=natural, default=10, help="lines of log in detail (10)"),
        ),
        "Show what runs. With one NAME: all that is known about it and its last lines of log. With names, "
        "the exit code is 0 if all of them run, 3 if one does not, 4 if there is no such container.",
        "  cleat status\n  cleat status web\n  cleat status --json | jq -r '.[] | select(.ready | not) | .name'",
    ),
)
