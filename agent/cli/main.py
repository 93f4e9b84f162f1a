# SPDX-License-Identifier: Apache-2.0
"""The `cleat` command: finds the verb, loads only what it needs, turns errors into text and exit codes."""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import TYPE_CHECKING, NoReturn

import agent
from agent.cli import arguments
from agent.cli.render import report
from agent.errors import CleatError, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.cli.arguments import Verb

# Verbs by topic, as the help shows them; each row names the module that declares them.
TOPICS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("Definitions", (("definitions", "check plan schema reload-agent"),)),
    ("Life", (("lifecycle", "start stop restart reload pause resume kill wait"), ("definitions", "run"))),
    ("Looking", (("status", "status"), ("show", "inspect top stats info"), ("logs", "logs events"))),
    ("Inside", (("inside", "exec attach"),)),
    ("Images and checkpoints", (("images", "pull images prune"), ("checkpoint", "checkpoint restore"))),
)
MODULES = {verb: module for _, rows in TOPICS for module, verbs in rows for verb in verbs.split()}
HIDDEN = {"__names": "show"}  # for shell completion


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; gives the exit code, never a traceback."""
    prepare_streams()
    try:
        code = dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except CleatError as error:
        return report(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has had enough: head(1), a closed pager
        discard_output()
        return 1
    except OSError as error:
        discard_output()
        return report(CleatError("the command failed", why=error.strerror or str(error)))
    return code


def prepare_streams() -> None:
    """What cannot be encoded is escaped; closed standard fds become /dev/null, before something else takes them."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 it lives as long as the process
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """What is left in stdout's buffer can go nowhere; without this the interpreter would try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())


def dispatch(argv: list[str]) -> int:
    """Options before the verb, then the verb."""
    user = False
    while argv and argv[0].startswith("-"):
        match argv.pop(0):
            case "--user":
                user = True
            case "--system":
                user = False
            case "--version":
                print(f"cleat {agent.__version__}")
                return 0
            case "-h" | "--help":
                print(overview())
                return 0
            case other:
                raise InvalidArgument(f"unknown option {other!r} before the command", hint="see cleat --help")
    if not argv:
        raise InvalidArgument("no command given", hint="see cleat --help")
    verb = find(argv[0])
    return verb.run(arguments.parser(verb, user=user).parse_args(argv[1:]))


def find(name: str) -> Verb:
    """The verb of that name; its module is imported now."""
    module = MODULES.get(name) or HIDDEN.get(name) or _unknown(name)
    verbs: tuple[Verb, ...] = importlib.import_module(f"agent.cli.{module}").VERBS
    return next(verb for verb in verbs if verb.name == name)


def _unknown(name: str) -> NoReturn:
    import difflib

    near = difflib.get_close_matches(name, MODULES, 1)
    hint = f"did you mean {near[0]}?" if near else "see cleat --help"
    raise InvalidArgument(f"unknown command {name!r}", hint=hint)


def overview() -> str:
    """The whole command on one screen."""
    lines = [
        "usage: cleat [--user] COMMAND [ARGUMENT…]",
        "",
        "Containers under systemd: the file /etc/cleat/containers/NAME.toml defines the container NAME.",
    ]
    for topic, rows in TOPICS:
        verbs = [find(name) for _, names in rows for name in names.split()]
        lines += ["", f"{topic}:", *(f"  {verb.name:<13} {verb.summary}" for verb in verbs)]
    return "\n".join(
        [
            *lines,
            "",
            "Options before the command:",
            "  --user        talk to the agent of your own user manager",
            "  --system      talk to the system's agent (default)",
            "  --version     print the version",
            "",
            "A first container:",
            "  editor /etc/cleat/containers/web.toml",
            "  cleat check && cleat plan && cleat reload-agent",
            "  cleat status web",
            "",
            "'cleat COMMAND --help' explains a command; cleat(1) explains all of it.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
