# SPDX-License-Identifier: Apache-2.0
"""The small Event and Queue."""

from __future__ import annotations

import asyncio

import pytest

from agent.flag import Flag, Mailbox


def test_all_waiters_go_on() -> None:
    async def check() -> None:
        flag = Flag()
        waiters = [asyncio.create_task(flag.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(waiter.done() for waiter in waiters)
        flag.set()
        flag.clear()
        await asyncio.gather(*waiters)
        assert not flag.is_set()

    asyncio.run(check())


def test_a_flag_that_is_set_is_not_waited_for() -> None:
    async def check() -> None:
        flag = Flag()
        flag.set()
        flag.set()
        await flag.wait()
        assert flag.is_set()

    asyncio.run(check())


def test_who_gives_up_is_forgotten() -> None:
    async def check() -> None:
        flag = Flag()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await flag.wait()
        left, stays = asyncio.create_task(flag.wait()), asyncio.create_task(flag.wait())
        await asyncio.sleep(0)
        left.cancel()
        flag.set()
        await stays
        with pytest.raises(asyncio.CancelledError):
            await left

    asyncio.run(check())


def test_mail_comes_in_its_order() -> None:
    async def check() -> None:
        box: Mailbox[int] = Mailbox()
        reader = asyncio.create_task(box.next())
        await asyncio.sleep(0)
        box.post(1)
        box.post(2)
        box.post(3)
        assert await reader == 1
        assert await box.next() == 2
        assert box.drain() == [3]
        assert box.drain() == []
        later = asyncio.create_task(box.next())
        await asyncio.sleep(0)
        assert not later.done()
        box.post(4)
        assert await later == 4

    asyncio.run(check())
