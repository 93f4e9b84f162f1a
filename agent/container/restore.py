# SPDX-License-Identifier: Apache-2.0
"""What a container goes on from instead of starting afresh (checkpoint.py makes and finds it), and criu's own words."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from agent.systemd.text import clean

_LOG_MAX = 1 << 20
# criu/util.c tells of tools that could not be run, which criu may well do without; who cannot says so next.
_ERROR = re.compile(r"^\([0-9.]+\)\s*(?:\d+: )?Error \((?!criu/util\.c:)[^)]*\): (?P<words>.*)$", re.MULTILINE)


class Restore(msgspec.Struct, frozen=True, kw_only=True):
    """criu's folder, the container's changes to its root ("" = none), and options for the runtime's restore."""

    image: str
    upper: str = ""
    options: tuple[str, ...] = ()


def criu_reason(log: Path) -> str:
    """What criu complained of first, from its dump.log or restore.log; "" without one. The rest follows from that."""
    try:
        with log.open("rb") as file:
            text = file.read(_LOG_MAX).decode(errors="replace")
    except OSError:
        return ""
    found = _ERROR.search(text)
    return clean(found["words"].strip(), 300) if found else ""
