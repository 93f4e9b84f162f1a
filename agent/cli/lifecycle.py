# SPDX-License-Identifier: Apache-2.0
"""Verbs that change what runs. Several names go to the agent at once; each failure is told."""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

from agent.cli.arguments import Option, Verb, option
from agent.cli.names import NAMES, expanded
from agent.cli.render import report
from agent.errors import CleatError, InvalidArgument

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator

    from agent.cli.client import Bus

DEFINITIONS_OWN = (1 << 64) - 1  # Stop's timeout_usec: as the definition says
# On the system bus a connection may wait for 128 replies (dbus-daemon(1), max_replies_per_connection).
_AT_ONCE = 64

_COULD_NOT_RUN = 125


def call_each(args: Namespace, member: str, signature: str = "s", *more: Any) -> int:
    """Call `member` for every name given; gives the worst exit code. 125 and up are for `run` and `exec` alone."""
    worst = 0
    with expanded(args) as (bus, names):
        for _, outcome in _outcomes(bus, names, member, signature, *more):
            if isinstance(outcome, CleatError):
                code = report(outcome)
                worst = max(worst, code if code < _COULD_NOT_RUN else 1)
    return worst


def _outcomes(
    bus: Bus, names: list[str], member: str, signature: str, *more: Any
) -> Iterator[tuple[str, tuple[Any, ...] | CleatError]]:
    """Each name with its answer, in the order in which they come."""
    waiting: dict[int, str] = {}
    rest = iter(names)
    while True:
        while len(waiting) < _AT_ONCE and (name := next(rest, None)) is not None:
            waiting[bus.send(member, signature, name, *more)] = name
        if not waiting:
            return
        serial, outcome = bus.receive()
        if serial in waiting:
            yield waiting.pop(serial), outcome


def _simple(member: str) -> Callable[[Namespace], int]:
    return lambda args: call_each(args, member)


def stop(args: Namespace) -> int:
    timeout = DEFINITIONS_OWN
    if args.time is not None:
        timeout = _microseconds(args.time)
    return call_each(args, "Stop", "st", timeout)


def _microseconds(text: str) -> int:
    seconds = given("--time", text, "parse_time_span")
    return min(DEFINITIONS_OWN - 1, int(seconds * 1e6)) if math.isfinite(seconds) else DEFINITIONS_OWN - 1


def kill(args: Namespace) -> int:
    return call_each(args, "Kill", "sib", given("--signal", args.signal, "parse_signal"), args.all_processes)


def given(flag: str, text: str, parser: str) -> Any:
    """The value of an option by the parser that reads such values in definitions."""
    values = importlib.import_module("agent.definition.values")
    try:
        return getattr(values, parser)(text)
    except values.InvalidValue as error:
        raise InvalidArgument(f"{flag}: {error.reason}", hint=error.hint) from error


def wait(args: Namespace) -> int:
    """Prints each container's exit code in the order of the names; the last one is the command's own."""
    with expanded(args) as (bus, names):
        got = dict(_outcomes(bus, names, "Wait", "s"))
    last = 0
    for name in names:
        outcome = got[name]
        if isinstance(outcome, CleatError):
            last = report(outcome)
            continue
        last = int(outcome[0]) & 0xFF
        print(outcome[0])
    return last


ALL = option("-a", "--all", action="store_true", help="every container that the agent knows")
_MANY: tuple[Option, ...] = (NAMES, ALL)

VERBS = (
    Verb(
        "start",
        "start containers and wait until they are ready",
        _simple("Start"),
        _MANY,
        "Start containers and return when each is ready; the definition's notify= says what that means. "
        "What a container requires is started first. One that runs already is left alone.",
        "  cleat start web\n  cleat start worker@1 worker@2     two instances of worker@.toml\n  cleat start --all",
    ),
    Verb(
        "stop",
        "stop containers and wait until they have ended",
        stop,
        (
            *_MANY,
            option("-t", "--time", metavar="SPAN", help="time until SIGKILL, instead of timeout_stop_sec"),
        ),
        "Stop containers the definition's way: kill_signal, then SIGKILL after timeout_stop_sec. Returns "
        "when they have ended. A stopped container stays stopped, whatever its restart= says.",
        "  cleat stop web\n  cleat stop -t 1min db\n  cleat stop -t 0 'worker@*'",
    ),
    Verb(
        "restart",
        "stop, if they run, and start containers",
        _simple("Restart"),
        _MANY,
        "",
        "  cleat restart web",
    ),
    Verb(
        "reload",
        "let containers read their configuration again",
        _simple("Reload"),
        _MANY,
        "Run reload_command inside the containers, or send them reload_signal. To have the agent read "
        "changed definitions, use cleat reload-agent.",
        "  cleat reload web",
    ),
    Verb("pause", "freeze all processes of containers", _simple("Pause"), _MANY, "", "  cleat pause web"),
    Verb("resume", "let paused containers go on", _simple("Resume"), _MANY, "", "  cleat resume web"),
    Verb(
        "kill",
        "send containers a signal",
        kill,
        (
            NAMES,
            option("-s", "--signal", metavar="SIG", default="SIGTERM", help="name or number (default: SIGTERM)"),
            option(
                "-a",
                "--all",
                dest="all_processes",
                action="store_true",
                help="to all processes, not just the first",
            ),
        ),
        "Send a signal to the first process of containers. A container that ends of it is restarted if its "
        "restart= says so; to end it for good, use cleat stop.",
        "  cleat kill -s HUP web\n  cleat kill -s 9 --all web",
    ),
    Verb(
        "wait",
        "wait until containers end and print their exit codes",
        wait,
        _MANY,
        "Wait for the end of containers. Prints one exit code per line in the order of the names; the last "
        "one is the exit code of the command too. A container that has ended already answers at once.",
        "  cleat wait backup && echo done",
    ),
)
