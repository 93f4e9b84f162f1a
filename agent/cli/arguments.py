# SPDX-License-Identifier: Apache-2.0
"""How a verb of the command is declared: once, as data for the parser, its help and the tests."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable


class Option(NamedTuple):
    """An option ("-f", "--follow") or, without a dash, a positional argument; `settings` are argparse's."""

    flags: tuple[str, ...]
    settings: dict[str, Any]


class Verb(NamedTuple):
    """One verb. `run` gets the parsed arguments and gives the exit code, or raises a CleatError."""

    name: str
    summary: str
    run: Callable[[argparse.Namespace], int]
    options: tuple[Option, ...] = ()
    description: str = ""
    examples: str = ""


def option(*flags: str, **settings: Any) -> Option:
    return Option(flags, settings)


def natural(text: str) -> int:
    """A number from 0 up, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 up")
    return int(text)


JSON = option("--json", action="store_true", help="print JSON")
NAME = option("name", metavar="NAME", help="the container, which is its file's name without .toml")
USER = option("--user", action="store_true", help="talk to the agent of your own user manager")
SYSTEM = option("--system", dest="user", action="store_false", help="talk to the system's agent (default)")


def parser(verb: Verb, *, user: bool = False) -> argparse.ArgumentParser:
    """The parser of one verb; `user` is what stood before the verb."""
    built = _Parser(
        prog=f"cleat {verb.name}",
        description=verb.description or f"{verb.summary[0].upper()}{verb.summary[1:]}.",
        epilog=f"examples:\n{verb.examples}" if verb.examples else None,
        formatter_class=_plain,
        allow_abbrev=False,
    )
    own = {flag for flags, _ in verb.options for flag in flags}
    for flags, settings in (*verb.options, *(() if "--user" in own else (USER, SYSTEM))):
        built.add_argument(*flags, **settings)
    built.set_defaults(user=user)
    return built


def _plain(prog: str) -> argparse.HelpFormatter:
    """Asked for with each argument, to check it; the width of the screen is slow to find, and for help alone."""
    return argparse.HelpFormatter(prog, width=80)


class _Parser(argparse.ArgumentParser):
    """argparse with our way of saying that a call is wrong, and descriptions as wide as the screen."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def format_help(self) -> str:
        from shutil import get_terminal_size
        from textwrap import fill

        self.formatter_class = argparse.RawDescriptionHelpFormatter
        self.description = fill(self.description or "", get_terminal_size().columns - 2)
        return super().format_help()
