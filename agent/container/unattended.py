# SPDX-License-Identifier: Apache-2.0
"""What was stopped while there was no agent.

Of a container that ended, the scope is gone and with it all that systemd knew. But systemd writes into the journal that
it begins a stop job (systemd.journal-fields(7), SD_MESSAGE_UNIT_STOPPING); nobody else can write that in its name.
Where there is no such entry, be it that the journal is gone, nobody stopped it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

import msgspec

from agent.container import rootless
from agent.errors import CleatError
from agent.spawn import tool

logger = logging.getLogger(__name__)

# sd-messages.h
_STOPPING = "de5b426a63be47a7b6ac3eaac82e2f6f"
_STOPPED = "9d1aaa27d60140bd96365438aad20286"
_STARTING = "7d4958e842da4a758f6c1cdc7b36dcc5"
_SUCCEEDED = "7ad2d189f7e94e70a38c781354912448"
_FAILED = "d9b373ed55a64feb8242e02dbe79a49c"
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


class Entry(msgspec.Struct, frozen=True):
    """One of the service manager's (systemd.journal-fields(7))."""

    usec: str = msgspec.field(name="__REALTIME_TIMESTAMP")
    message_id: str = msgspec.field(name="MESSAGE_ID")
    unit: str = msgspec.field(name="UNIT", default="")
    job_type: str = msgspec.field(name="JOB_TYPE", default="")


_decode = msgspec.json.Decoder(Entry).decode


async def stopped_handles(since: float) -> dict[str, float]:
    """The handles that were stopped after the Unix time `since` and not started again, each with the time."""
    fields = "UNIT,JOB_TYPE,MESSAGE_ID"
    argv = ["journalctl", "--quiet", "--boot", "--output=json", f"--output-fields={fields}", f"--since=@{since:.6f}"]
    ids = [f"MESSAGE_ID={value}" for value in (_STARTING, _SUCCEEDED, _FAILED, _STOPPED)]
    try:
        result = await tool.run([*argv, *ids, "_PID=1"], timeout=_TIMEOUT)
        return stops_in(_decode(line) for line in result.stdout.splitlines())
    except (CleatError, msgspec.MsgspecError) as e:
        logger.debug("%s", e)
        return {}


def stops_in(entries: Iterable[Entry]) -> dict[str, float]:
    """A handle that waits ends well when somebody stops it, and fails when its client loses the agent, after which it
    has a stop job, too (units/cleat-handle).
    """
    stopped: dict[str, float] = {}
    ended_well: set[str] = set()
    for entry in entries:
        if entry.message_id == _SUCCEEDED:
            ended_well.add(entry.unit)
        elif entry.message_id == _STOPPED and entry.job_type == "stop" and entry.unit in ended_well:
            stopped[entry.unit] = int(entry.usec) / 1e6
        elif entry.message_id in {_STARTING, _FAILED}:
            ended_well.discard(entry.unit)
            stopped.pop(entry.unit, None)
    return stopped


def _of_unit(unit: str) -> list[str]:
    """Entries of the service manager itself about a unit."""
    if rootless.is_rootless():
        return [f"MESSAGE_ID={_STOPPING}", "_COMM=systemd", f"_UID={os.geteuid()}", f"USER_UNIT={unit}"]
    return [f"MESSAGE_ID={_STOPPING}", "_PID=1", f"UNIT={unit}"]
