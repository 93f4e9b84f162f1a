# SPDX-License-Identifier: Apache-2.0
"""Tools for files of a user's subordinate ids, without root: run in a user namespace that has these ids."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import msgspec

from agent.errors import CommandNotFound
from agent.process import Process
from agent.spawn.request import Request
from agent.spawn.spawner import HERE, Spawner
from agent.spawn.userns import Ranges


class Mapped:
    """Starts everything as root of a user namespace that unshare(1) makes: the caller, and their subordinate ids.

    newuidmap(1) and newgidmap(1) are run where there are such ids, and check them against subuid(5) and subgid(5).
    """

    def __init__(self, uids: Ranges, gids: Ranges, spawner: Spawner = HERE) -> None:
        """The first range of each is the caller's own id, as 0."""
        self.is_alone = len(uids) == 1 or len(gids) == 1
        self._spawner = spawner
        self._prefix = ["unshare", "--map-root-user"]
        if not self.is_alone:
            self._prefix += [*_options("--map-users", uids[1:]), *_options("--map-groups", gids[1:])]
        self._prefix.append("--")

    async def spawn(self, request: Request, fds: Sequence[int]) -> Process:
        """unshare(1) becomes the program, so its pid is the program's. Raises CommandNotFound, CleatError, OSError."""
        command = request.argv[0]
        if shutil.which(command, path=request.env.get("PATH")) is None:
            raise CommandNotFound(f"cannot run {command}", why="it is not on the PATH", hint=f"install {command}")
        return await self._spawner.spawn(msgspec.structs.replace(request, argv=(*self._prefix, *request.argv)), fds)

    async def bounding_set(self) -> int:
        return await self._spawner.bounding_set()


def _options(name: str, ranges: Ranges) -> list[str]:
    # The older of its two notations, outside first: util-linux 2.38 knows no other, newer ones know both.
    return [f"{name}={outside},{inside},{count}" for inside, outside, count in ranges]
