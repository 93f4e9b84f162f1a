# SPDX-License-Identifier: Apache-2.0
"""What an older systemd does not do for cleat; the rest works as with a newer one. Facts: systemd's NEWS."""

from __future__ import annotations

import re

_SINCE = (
    (253, "systemctl reload cleat is not possible, cleat reload-agent is"),
    (254, "sockets on demand do not listen and handles do not wait while the agent is stopped"),
    (254, "units that require cleat@NAME are restarted with it"),
)
NEEDED = max(since for since, _ in _SINCE)
"""The first version that lacks nothing."""


def lacking(version: str) -> tuple[str, ...]:
    """For the Version property of systemd's manager; nothing where that begins with no number."""
    number = re.match(r"\d{1,9}", version)
    return tuple(text for since, text in _SINCE if number and int(number[0]) < since)
