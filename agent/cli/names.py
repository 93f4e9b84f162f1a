# SPDX-License-Identifier: Apache-2.0
"""Which containers a command line means: names as they are, patterns and --all by what the agent knows."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agent.cli.arguments import option
from agent.cli.client import Bus
from agent.errors import InvalidArgument, NoSuchContainer

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator


NAMES = option(
    "names", metavar="NAME", nargs="*", help="containers; patterns such as 'web@*' for those the agent knows"
)


def known(bus: Bus) -> list[str]:
    """The names of all containers, in the agent's order."""
    (text,) = bus.query("GetStatus", "as", [])
    return [status["name"] for status in json.loads(text)]


def is_pattern(name: str) -> bool:
    return any(character in name for character in "*?[")


def matching(patterns: list[str], candidates: list[str]) -> list[str]:
    """The names meant, each once, in the order given. NoSuchContainer for a pattern without a match."""
    from fnmatch import fnmatchcase

    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = [name for name in candidates if fnmatchcase(name, pattern)] if is_pattern(pattern) else [pattern]
        if not found:
            raise NoSuchContainer(f"no container matches {pattern!r}", hint="see cleat status")
        chosen.update(dict.fromkeys(found))
    return list(chosen)


@contextmanager
def expanded(args: Namespace) -> Iterator[tuple[Bus, list[str]]]:
    """A connection, and the names of a command line with NAME… and --all."""
    everything = getattr(args, "all", False)
    if everything and args.names:
        raise InvalidArgument("names and --all exclude each other")
    if not everything and not args.names:
        raise InvalidArgument("no container named", hint="give one or more names, see cleat status")
    with Bus(user=args.user) as bus:
        if everything:
            yield bus, known(bus)
        else:
            yield bus, matching(args.names, known(bus) if any(map(is_pattern, args.names)) else [])
