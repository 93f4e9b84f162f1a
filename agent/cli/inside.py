# SPDX-License-Identifier: Apache-2.0
"""Verbs that go into a container: run a command in it, or join its first process's stdio."""

from __future__ import annotations

import json
import os
import sys
from argparse import REMAINDER
from typing import TYPE_CHECKING

from agent.cli import pump, terminal
from agent.cli.answer import Answer
from agent.cli.arguments import NAME, Verb, option
from agent.cli.client import Bus
from agent.errors import CleatError, InvalidArgument

if TYPE_CHECKING:
    from argparse import Namespace

DETACH_KEYS = "ctrl-p,ctrl-q"
# A client that does not read stalls the container in the end: conmon writes to each of them in turn.
_READER_PATIENCE_SEC = 10.0
_ALL = False  # Kill: the first process only


def execute(args: Namespace) -> int:
    with Bus(user=args.user) as bus:
        return _execute(bus, args)


def _execute(bus: Bus, args: Namespace) -> int:
    session, path, ctl = bus.call("Exec", "ss", args.name, json.dumps(_options(args)))
    if args.detach:
        bus.call("ExecStart", "s", session)
        print(session)
        return 0
    with pump.connect(path) as link:
        bus.call("ExecStart", "s", session)
        with terminal.raw(0, wanted=args.tty and args.interactive):
            pumped = pump.Pump(
                link,
                Answer(bus, "ExecWait", "s", session, again=True),
                ctl=ctl,
                stdin=args.interactive,
                is_terminal=args.tty,
                detach_keys=b"",
                on_signal=lambda number: bool(bus.send("ExecKill", "si", session, number)),
            )
            pumped.run()
    return _exit_code(pumped)


def _options(args: Namespace) -> dict[str, object]:
    """What the agent needs to know of the command; a variable without a value takes the caller's."""
    environment = {}
    if args.tty:
        environment["TERM"] = os.environ.get("TERM", "xterm")
    for text in args.env:
        key, given, value = text.partition("=")
        if given or key in os.environ:
            environment[key] = value if given else os.environ[key]
    columns, lines = terminal.size() if args.tty else (0, 0)
    return {
        "command": command_of(args),
        "user": args.user_inside,
        "working_directory": args.workdir,
        "environment": environment,
        "terminal": args.tty,
        "stdin": args.interactive,
        "detach": args.detach,
        "capabilities_add": args.cap_add,
        "width": columns,
        "height": lines,
    }


def command_of(args: Namespace) -> list[str]:
    command: list[str] = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise InvalidArgument("no command given", hint="cleat exec NAME -- COMMAND")
    return command


def attach(args: Namespace) -> int:
    keys = terminal.parse_keys(args.detach_keys)
    with Bus(user=args.user) as bus:
        return _attach(bus, args, keys)


def _attach(bus: Bus, args: Namespace, keys: bytes) -> int:
    path, ctl, is_terminal = bus.call("Attach", "s", args.name)
    with pump.connect(path) as link, terminal.raw(0, wanted=is_terminal and not args.no_stdin):
        pumped = pump.Pump(
            link,
            Answer(bus, "Wait", "s", args.name),
            ctl=ctl,
            stdin=not args.no_stdin,
            is_terminal=is_terminal,
            detach_keys=keys,
            on_signal=lambda number: args.sig_proxy and bool(bus.send("Kill", "sib", args.name, number, _ALL)),
            patience=_READER_PATIENCE_SEC,
        )
        end = pumped.run()
    if end is pump.End.DETACHED and pumped.failure is None:
        print(f"\nDetached from {args.name}; it goes on running.", file=sys.stderr)
        return 0
    return _exit_code(pumped)


def _exit_code(pumped: pump.Pump) -> int:
    if pumped.failure:
        raise pumped.failure
    if pumped.end is pump.End.SIGNALLED:
        return 128 + pumped.signal
    if isinstance(pumped.code, CleatError):
        raise pumped.code
    return pumped.code or 0


VERBS = (
    Verb(
        "exec",
        "run a command inside a running container",
        execute,
        (
            option("-i", "--interactive", action="store_true", help="pass stdin on to the command"),
            option("-t", "--tty", action="store_true", help="give the command a terminal"),
            option("-d", "--detach", action="store_true", help="do not wait; print the session's id"),
            option(
                "-u",
                "--user",
                dest="user_inside",
                metavar="USER[:GROUP]",
                default="",
                help="as this user",
            ),
            option("-w", "--workdir", metavar="DIR", default="", help="in this directory"),
            option("-e", "--env", metavar="KEY[=VALUE]", action="append", default=[], help="set a variable"),
            option("--cap-add", metavar="CAP", action="append", default=[], help="with this capability"),
            NAME,
            option("command", metavar="-- COMMAND", nargs=REMAINDER, help="the command and its arguments"),
        ),
        "Run a command in a container's namespaces, with its environment and limits. The exit code is the "
        "command's own; 126 if it cannot be executed, 127 if there is none, 125 if the runtime failed. "
        "SIGINT, SIGTERM, SIGHUP and SIGQUIT are passed on. Here --user is whom to run as; the agent of "
        "your user manager is reached with cleat --user exec.",
        "  cleat exec -it web -- sh\n  cleat exec web -- nginx -t\n"
        "  cleat exec -i db -- psql <dump.sql\n  cleat exec -u root -e DEBUG=1 web -- id",
    ),
    Verb(
        "attach",
        "join the stdin and output of a container",
        attach,
        (
            option(
                "--detach-keys",
                metavar="KEYS",
                default=DETACH_KEYS,
                help=f"leave when these are typed on a terminal ({DETACH_KEYS})",
            ),
            option("--no-stdin", action="store_true", help="only look"),
            option("--sig-proxy", action="store_true", help="pass signals on instead of leaving"),
            NAME,
        ),
        "Show what a container writes from now on and pass on what is typed (with stdin = true in its "
        "definition). When it ends, so does this, with its exit code. A signal ends only this command, "
        "unless --sig-proxy is given. What was written before is in cleat logs.",
        "  cleat attach web\n  cleat attach --no-stdin web\n  cleat attach --detach-keys ctrl-x,x web",
    ),
)
