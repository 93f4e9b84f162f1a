# SPDX-License-Identifier: Apache-2.0
"""Whether a container that ended while there was no agent was stopped by somebody, or just ended.

Its scope is gone and with it all that systemd knew. But systemd writes into the journal that it begins a stop job
(systemd.journal-fields(7), SD_MESSAGE_UNIT_STOPPING); nobody else can write that in its name. Where there is no such
entry, be it that the journal is gone, the container has ended by itself.
"""

from __future__ import annotations

import logging
import os

from agent.container import rootless
from agent.errors import CleatError
from agent.spawn import tool

logger = logging.getLogger(__name__)

_STOPPING = "MESSAGE_ID=de5b426a63be47a7b6ac3eaac82e2f6f"
_TIMEOUT = 10.0


async def was_stopped(name: str, scope: str, since: float) -> bool:
    """Whether the scope, or the container's handle, had a stop job after the Unix time `since`."""
    handle = f"cleat@{name}.service"
    matches = _of_unit(scope) if rootless.is_rootless() else [*_of_unit(scope), "+", *_of_unit(handle)]
    argv = ["journalctl", "--quiet", "--boot", "--lines=1", "--output=cat", f"--since=@{since:.6f}", *matches]
    try:
        result = await tool.run(argv, timeout=_TIMEOUT)
    except CleatError as e:
        logger.debug("%s: %s", name, e)
        return False
    return result.returncode == 0 and bool(result.stdout.strip())


def _of_unit(unit: str) -> list[str]:
    """Entries of the service manager itself about a unit."""
    if rootless.is_rootless():
        return [_STOPPING, "_COMM=systemd", f"_UID={os.geteuid()}", f"USER_UNIT={unit}"]
    return [_STOPPING, "_PID=1", f"UNIT={unit}"]
