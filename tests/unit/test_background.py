# SPDX-License-Identifier: Apache-2.0
"""Work that nobody may stop."""

from __future__ import annotations

import asyncio

import pytest

from agent.background import completed


async def _stopped_twice(work: asyncio.Task[str]) -> asyncio.Task[str]:
    waiting = asyncio.create_task(completed(work))
    for _ in range(2):
        await asyncio.sleep(0)
        waiting.cancel()
    await asyncio.sleep(0)
    return waiting


def test_a_stop_does_not_end_it() -> None:
    async def check() -> None:
        go = asyncio.Event()

        async def work() -> str:
            await go.wait()
            return "done"

        waiting = await _stopped_twice(asyncio.create_task(work()))
        assert not waiting.done()
        go.set()
        assert await waiting == "done"

    asyncio.run(check())


def test_its_failure_is_passed_on() -> None:
    async def check() -> None:
        async def work() -> str:
            raise OSError("no room")

        with pytest.raises(OSError, match="no room"):
            await (await _stopped_twice(asyncio.create_task(work())))

    asyncio.run(check())
