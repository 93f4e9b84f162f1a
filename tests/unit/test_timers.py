# SPDX-License-Identifier: Apache-2.0
"""Deadlines of a run, by a clock that stands still until it is told to go on."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import pytest

from agent.container.events import Event, RuntimeMaxReached, StartTimedOut, StopOverdue
from agent.container.timers import Timers

if TYPE_CHECKING:
    from collections.abc import Iterator


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time is ours."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for _ in range(2):
            self.call_soon(self.stop)
            self.run_forever()


class Deadlines:
    """Timers and what they posted; calls go through the loop, as the timers ask for the running one."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.posted: list[Event] = []
        self.timers = Timers(self.posted.append)

    def set(self, name: str, delay: float, event: Event, *, only_earlier: bool = False) -> None:
        async def call() -> None:
            self.timers.set(name, delay, event, only_earlier=only_earlier)

        self.clock.run_until_complete(call())

    def extend(self, name: str, delay: float, event: Event) -> bool:
        async def call() -> bool:
            return self.timers.extend(name, delay, event)

        return self.clock.run_until_complete(call())


@pytest.fixture
def deadlines() -> Iterator[Deadlines]:
    clock = Clock()
    yield Deadlines(clock)
    clock.close()


def test_each_fires_once(deadlines: Deadlines) -> None:
    deadlines.set("start", 5, StartTimedOut())
    deadlines.clock.advance(4.9)
    assert deadlines.posted == []
    deadlines.clock.advance(0.2)
    deadlines.clock.advance(100)
    assert deadlines.posted == [StartTimedOut()]


def test_a_new_one_replaces_the_old(deadlines: Deadlines) -> None:
    deadlines.set("start", 5, StartTimedOut())
    deadlines.set("start", 50, StartTimedOut())
    deadlines.clock.advance(10)
    assert deadlines.posted == []


def test_only_earlier(deadlines: Deadlines) -> None:
    deadlines.set("stop", 5, StopOverdue())
    deadlines.set("stop", 50, StopOverdue(), only_earlier=True)
    deadlines.set("stop", math.inf, StopOverdue(), only_earlier=True)
    deadlines.clock.advance(5.1)
    assert deadlines.posted == [StopOverdue()]
    deadlines.set("stop", 50, StopOverdue())
    deadlines.set("stop", 1, StopOverdue(), only_earlier=True)
    deadlines.clock.advance(1.1)
    assert len(deadlines.posted) == 2


def test_infinite_is_none(deadlines: Deadlines) -> None:
    deadlines.set("runtime", 5, RuntimeMaxReached())
    deadlines.set("runtime", math.inf, RuntimeMaxReached())
    deadlines.clock.advance(1e6)
    assert deadlines.posted == []


def test_past_is_now(deadlines: Deadlines) -> None:
    deadlines.set("runtime", -5, RuntimeMaxReached())
    deadlines.clock.advance(0)
    assert deadlines.posted == [RuntimeMaxReached()]


def test_extend_moves_a_set_one_further_away_only(deadlines: Deadlines) -> None:
    assert not deadlines.extend("start", 50, StartTimedOut())
    deadlines.set("start", 5, StartTimedOut())
    assert not deadlines.extend("start", 1, StartTimedOut())
    assert deadlines.extend("start", 50, StartTimedOut())
    deadlines.clock.advance(49)
    assert deadlines.posted == []
    deadlines.clock.advance(2)
    assert deadlines.posted == [StartTimedOut()]


def test_extended_by_the_most_that_a_payload_can_say(deadlines: Deadlines) -> None:
    deadlines.set("start", 5, StartTimedOut())
    assert deadlines.extend("start", (2**64 - 2) / 1e6, StartTimedOut())
    deadlines.clock.advance(1e6)
    assert deadlines.posted == []


def test_cancelled(deadlines: Deadlines) -> None:
    deadlines.set("start", 5, StartTimedOut())
    deadlines.set("stop", 5, StopOverdue())
    deadlines.timers.cancel("start")
    deadlines.timers.cancel("start")
    deadlines.clock.advance(6)
    assert deadlines.posted == [StopOverdue()]
    deadlines.set("start", 5, StartTimedOut())
    deadlines.timers.cancel_all()
    deadlines.clock.advance(6)
    assert deadlines.posted == [StopOverdue()]
