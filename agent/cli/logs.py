# SPDX-License-Identifier: Apache-2.0
"""Verbs that read what was written: a container's output, and the events that the agent told the journal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import deque
from typing import TYPE_CHECKING, Any

from agent.cli import lines, render
from agent.cli.arguments import JSON, NAME, Verb, natural, option
from agent.cli.client import ask
from agent.errors import CleatError, InvalidArgument, NoSuchContainer

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from agent.cli.lines import Line

_PRIORITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
_FOLLOWED_LINES = 10  # as journalctl -f


def logs(args: Namespace) -> int:
    since, until = moment(args.since), moment(args.until)
    last = args.lines if args.lines is not None or not args.follow else _FOLLOWED_LINES
    file, problem = _log_file(args)
    if isinstance(problem, NoSuchContainer):
        args.follow = False  # the journal may still know it, but no more will come
    pieces = _of_file(file, args, last, since, until) if file else _of_journal(args, last, since, until)
    seen = False
    for line in _last(_joined(pieces, follow=args.follow), last):
        if line is None:
            sys.stdout.flush()
            continue
        seen = True
        _print(lines.json_of(line) if args.json else lines.text_of(line, timestamps=args.timestamps))
    if problem and not seen:
        raise problem
    if not seen and os.geteuid() and not file:
        print("There may be lines that only members of the group systemd-journal can read.", file=sys.stderr)
    return 0


def _log_file(args: Namespace) -> tuple[str, CleatError | None]:
    """The file of the k8s-file driver, "" for the journal, which can be read without an agent too."""
    try:
        (text,) = ask("GetStatus", "as", [args.name], user=args.user)
    except CleatError as error:
        return "", error
    return str(json.loads(text)[0]["log_path"]), None


def _joined(pieces: Iterator[Line | None], *, follow: bool) -> Iterator[Line | None]:
    """Whole lines; None where the source had no more for now."""
    joiner = lines.Joiner()
    for piece in pieces:
        if piece is not None:
            yield from joiner.add(piece)
            continue
        if not follow:
            yield from joiner.flush()
        yield None
    yield from joiner.flush()


def _last(found: Iterator[Line | None], count: int | None) -> Iterator[Line | None]:
    """Of what there is at first only the last `count` lines (None: all), then everything that comes."""
    if count is not None:
        yield from deque(iter(found.__next__, None), count)
        yield None
    yield from found


def _of_journal(args: Namespace, last: int | None, since: float, until: float) -> Iterator[Line | None]:
    from agent.cli import journal

    def wanted(entry: journal.Entry) -> bool:
        return journal.is_ours(entry) and (args.agent or not journal.is_event(entry))

    def ends_line(entry: journal.Entry) -> bool:
        return wanted(entry) and not journal.to_line(entry).partial

    reader = journal.of_container(args.name, priority=priority(args.priority))
    journal.seek(reader, last=last, since=since, until=until, counts=ends_line)
    for entry in journal.entries(reader, until=until, follow=args.follow):
        if entry is None:
            yield None
        elif wanted(entry):
            yield journal.to_line(entry)


def _of_file(path: str, args: Namespace, last: int | None, since: float, until: float) -> Iterator[Line | None]:
    from agent.cli import crilog

    least = priority(args.priority)
    for line in crilog.read(path, last=last, follow=args.follow):
        if line is None:
            yield None
        elif until and line.time > until:
            return
        elif line.time >= since and least >= (3 if line.stream == "stderr" else 6):
            yield line


def _print(text: str) -> None:
    sys.stdout.buffer.write(text.encode(errors="surrogateescape") + b"\n")


def print_last(status: dict[str, Any], count: int, *, user: bool) -> None:
    """The last lines of a container with those of the agent about it, under `cleat status NAME`."""
    from argparse import Namespace

    args = Namespace(name=status["name"], user=user, agent=True, priority=None, follow=False)
    path = status["log_path"]
    pieces = _of_file(path, args, count, 0.0, 0.0) if path else _of_journal(args, count, 0.0, 0.0)
    try:
        found = [line for line in _last(_joined(pieces, follow=False), count) if line]
    except CleatError:
        return
    if found:
        print(flush=True)
    for line in found:
        _print(lines.text_of(line, timestamps=True))


def priority(text: str | None) -> int:
    """A syslog level by name or number; entries of it and the more urgent ones are meant. None means all."""
    if text is None:
        return 7
    name = {"error": "err", "warn": "warning", "panic": "emerg"}.get(text.lower(), text.lower())
    if name in _PRIORITIES:
        return _PRIORITIES.index(name)
    if text.isdecimal() and int(text) < len(_PRIORITIES):
        return int(text)
    raise InvalidArgument(f"there is no priority {text!r}", hint="0 to 7, or " + " ".join(_PRIORITIES))


def moment(text: str | None) -> float:
    """A time as systemd.time(7) has it ("10min ago", "today"), in Unix seconds; 0.0 for None."""
    if text is None:
        return 0.0
    command = ["systemd-analyze", "timestamp", "--", text]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CleatError("cannot run systemd-analyze to read a time", why=str(error)) from error
    found = re.search(r"UNIX seconds: @([0-9.]+)", done.stdout)
    if done.returncode or not found:
        raise InvalidArgument(f"there is no time {text!r}", hint='for example "10min ago", today, "2026-01-31 12:00"')
    return float(found[1])


def events(args: Namespace) -> int:
    from agent.cli import journal

    since, until = moment(args.since), moment(args.until)
    reader = journal.of_agent()

    def wanted(entry: journal.Entry) -> bool:
        return journal.is_event(entry) and (not args.names or entry.get("CLEAT_CONTAINER") in args.names)

    last = args.lines if args.lines is not None or args.since else 0
    journal.seek(reader, last=last, since=since, until=until, counts=wanted)
    for entry in journal.entries(reader, until=until, follow=not args.no_follow):
        if entry is None:
            sys.stdout.flush()
        elif wanted(entry):
            print(event_json(entry) if args.json else event_text(entry))
    return 0


def event_text(entry: dict[str, Any]) -> str:
    from agent.cli import journal

    return render.printable(
        f"{render.stamp(journal.seconds(entry))} {entry['CLEAT_EVENT']}: {entry.get('MESSAGE', '')}"
    )


def event_json(entry: dict[str, Any]) -> str:
    """The entry's own fields in lower case without CLEAT_: event, container, unit, exit_code, reason …"""
    from agent.cli import journal

    value: dict[str, Any] = {"time": journal.seconds(entry), "message": entry.get("MESSAGE", "")}
    for key, field in entry.items():
        if not key.startswith(("_", "SYSLOG_", "OBJECT_")) and key not in {"MESSAGE", "CONTAINER_NAME"}:
            value[key.removeprefix("CLEAT_").lower()] = field if isinstance(field, int) else str(field)
    return render.compact(value)


_SINCE = option("--since", metavar="TIME", help='from then on, for example "10min ago" (systemd.time(7))')
_UNTIL = option("--until", metavar="TIME", help="up to then")

VERBS = (
    Verb(
        "logs",
        "show what a container wrote",
        logs,
        (
            NAME,
            option("-f", "--follow", action="store_true", help="go on with what comes"),
            option("-n", "--lines", metavar="N", type=natural, help="only the last N lines (with -f: 10)"),
            option("-t", "--timestamps", action="store_true", help="begin each line with its time"),
            option(
                "-p",
                "--priority",
                metavar="LEVEL",
                help="only lines of this syslog level and more urgent ones",
            ),
            option("--agent", action="store_true", help="with the agent's entries about the container"),
            _SINCE,
            _UNTIL,
            JSON,
        ),
        'Print what a container wrote, from the journal or from the file of log.driver = "k8s-file". '
        "On a terminal stderr is red and control characters are shown, not sent.",
        "  cleat logs web\n  cleat logs -f -n 100 web\n  cleat logs --since '1h ago' -p err web\n"
        "  cleat logs --agent -t web        with what the agent did to it\n"
        "  journalctl CONTAINER_NAME=web    the same entries with journalctl's options",
    ),
    Verb(
        "events",
        "show what happens to containers, as it happens",
        events,
        (
            option("names", metavar="NAME", nargs="*", help="only events of these containers"),
            _SINCE,
            _UNTIL,
            option("-n", "--lines", metavar="N", type=natural, help="begin with the last N events"),
            option("--no-follow", action="store_true", help="end when all that is there was shown"),
            JSON,
        ),
        "Print the agent's events from the journal: created, started, ready, exited, unhealthy, backoff "
        "and so on. Goes on until interrupted.",
        "  cleat events\n  cleat events --since today --no-follow web\n  cleat events --json | jq .event",
    ),
)
