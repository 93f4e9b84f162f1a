# SPDX-License-Identifier: Apache-2.0
"""The end of a command whose client is gone: what a terminal does that is hung up, for commands without one too.

The processes of its session (setsid(2)) get SIGHUP where it has a terminal, which shells heed, else SIGTERM; what is
still there after HANGUP_SEC gets SIGKILL. Whoever made a session of their own stays, as after the end of a login. The
command itself need not lead its session: crun 1.8 makes one before it forks for the last time.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import suppress

from agent import cgroup
from agent.container.running import Running
from agent.process import ProcessRef, pidfd_ready

HANGUP_SEC = 10.0


def in_session(running: Running, number: int) -> Iterator[ProcessRef]:
    """The processes of the container that are in a session (setsid(2))."""
    for pid in cgroup.processes(running.payload_cgroup):
        found = ProcessRef.of(pid)
        try:
            belongs = os.getsid(pid) == number
        except OSError:
            continue
        if found is not None and belongs and cgroup.contains(running.payload_cgroup, pid):
            yield found


async def hang_up(running: Running, command: ProcessRef, *, terminal: bool) -> None:
    """End the session of `command`."""
    number = command.session()

    def found() -> set[ProcessRef]:
        # None once it has ended, for the number may be another's then.
        return {member for member in in_session(running, number) if command.is_alive()}

    members = found()
    pidfds = [fd for fd in (member.open_pidfd() for member in members) if fd is not None]
    try:
        for member in members:
            member.send_signal(signal.SIGHUP if terminal else signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(HANGUP_SEC):
                for fd in pidfds:
                    await pidfd_ready(fd)
    finally:
        for fd in pidfds:
            os.close(fd)
    for member in members | found():
        member.send_signal(signal.SIGKILL)
