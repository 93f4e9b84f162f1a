# SPDX-License-Identifier: Apache-2.0
"""The limits of processes in [resources]: systemd.exec(5), LimitNOFILE= and so on, and the OOM score; pure."""

from __future__ import annotations

import math

from agent.definition import values
from agent.definition.resources import to_usec, whole_number
from agent.definition.values import InvalidValue, shown

RLIM_INFINITY = -1

LIMITS: dict[str, str] = {
    "as": "size",
    "core": "size",
    "cpu": "seconds",
    "data": "size",
    "fsize": "size",
    "locks": "number",
    "memlock": "size",
    "msgqueue": "size",
    "nice": "number",
    "nofile": "number",
    "nproc": "number",
    "rss": "size",
    "rtprio": "number",
    "rttime": "microseconds",
    "sigpending": "number",
    "stack": "size",
}
"""getrlimit(2) by name, and what a plain number counts."""

EXPECTED = 'a limit such as 1024, "1024:4096" or "infinity"'


def parse_limit(name: str, value: str | int) -> tuple[int, int]:
    """(soft, hard) of "1024:4096"; one value is both. RLIM_INFINITY is -1."""
    text = str(value)
    soft_text, colon, hard_text = text.partition(":")
    soft = _limit(name, soft_text)
    hard = _limit(name, hard_text) if colon else soft
    if hard != RLIM_INFINITY and (soft == RLIM_INFINITY or soft > hard):
        raise InvalidValue(f"{shown(value)}: the soft limit is above the hard one", "write SOFT:HARD")
    return soft, hard


def _limit(name: str, text: str) -> int:
    text = text.strip()
    if text == "infinity":
        return RLIM_INFINITY
    match LIMITS[name]:
        case "size":
            return values.parse_size(text)
        case "seconds":
            return _bounded(math.ceil(values.parse_time_span(text)))
        case "microseconds":
            return _bounded(_microseconds_of(text))
        case _:
            return int(whole_number(text, 0, 2**63 - 1))


def _microseconds_of(text: str) -> int:
    """LimitRTTIME= counts microseconds where no unit is given."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else to_usec(text)


def _bounded(number: int) -> int:
    if number > 2**63 - 1:
        raise InvalidValue("too large for a limit", 'write "infinity"')
    return number


def parse_oom_score_adjust(value: int) -> int:
    """proc_pid_oom_score_adj(5)."""
    if not -1000 <= value <= 1000:
        raise InvalidValue(f"{value} is not from -1000 to 1000")
    return value
