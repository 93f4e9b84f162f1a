# SPDX-License-Identifier: Apache-2.0
"""Tools in a user namespace: what is run in place of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from agent.errors import CommandNotFound
from agent.process import Process
from agent.spawn.child import base_environment
from agent.spawn.mapped import Mapped
from agent.spawn.request import Request


class Noted:
    """Starts nothing."""

    def __init__(self) -> None:
        self.argv: tuple[str, ...] = ()

    async def spawn(self, request: Request, fds: Sequence[int]) -> Process:
        self.argv = request.argv
        raise InterruptedError

    async def bounding_set(self) -> int:
        return 0


def asked(mapped: Mapped, noted: Noted, *argv: str) -> str:
    request = Request(argv=argv, env=base_environment(), fds=())
    with pytest.raises(InterruptedError):
        asyncio.run(mapped.spawn(request, ()))
    return " ".join(noted.argv)


def test_all_ranges_are_mapped() -> None:
    noted = Noted()
    mapped = Mapped(((0, 1000, 1), (1, 100000, 10), (11, 300000, 5)), ((0, 1001, 1), (1, 200000, 20)), noted)
    assert not mapped.is_alone
    assert asked(mapped, noted, "sh", "-c", "x y") == (
        "unshare --map-root-user --map-users=100000,1,10 --map-users=300000,11,5 --map-groups=200000,1,20 -- sh -c x y"
    )


def test_nobody_but_the_caller() -> None:
    noted = Noted()
    mapped = Mapped(((0, 1000, 1),), ((0, 1000, 1), (1, 100000, 10)), noted)
    assert mapped.is_alone
    assert asked(mapped, noted, "sh") == "unshare --map-root-user -- sh"


def test_a_missing_tool_is_named() -> None:
    with pytest.raises(CommandNotFound, match="cannot run no-such-tool"):
        asyncio.run(Mapped(((0, 1, 1),), ((0, 1, 1),)).spawn(Request(argv=("no-such-tool",), env={}, fds=()), ()))
