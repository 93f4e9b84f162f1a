# SPDX-License-Identifier: Apache-2.0
"""Those who wait for a container."""

from __future__ import annotations

import asyncio

import pytest

from agent.container.waiters import Waiters
from agent.errors import InvalidState


def test_ready_is_told_once_and_the_end_later() -> None:
    async def check() -> None:
        waiters = Waiters()
        ready, end = waiters.for_ready(), waiters.for_end()
        waiters.ready()
        assert ready.done()
        assert not end.done()
        waiters.ended(3, InvalidState("was stopped"))
        assert await end == 3
        await ready

    asyncio.run(check())


def test_an_end_before_readiness_is_an_error_unless_all_was_done() -> None:
    async def check() -> None:
        waiters = Waiters()
        hopeful = waiters.for_ready()
        waiters.ended(1, InvalidState("was stopped"))
        with pytest.raises(InvalidState):
            await hopeful
        job = waiters.for_ready()
        waiters.ended(0, None)
        await job

    asyncio.run(check())


def test_who_left_is_not_told() -> None:
    async def check() -> None:
        waiters = Waiters()
        gone, end = waiters.for_ready(), waiters.for_end()
        gone.cancel()
        end.cancel()
        waiters.ready()
        waiters.ended(0, InvalidState("was stopped"))

    asyncio.run(check())
