# SPDX-License-Identifier: Apache-2.0
"""The health check of one run: a command inside the container, again and again, and what its results mean.

Rules are podman's (podman-run(1), --health-*): failures within the start period do not count until the first success,
`retries` failures in a row make it unhealthy, one success makes it healthy. It runs at the start and then whenever the
last one ended an interval ago. With a start-up command the check itself begins once that has succeeded; after
startup_retries failures of it the container is restarted, whatever `on_failure` says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from agent.container.events import Event, HealthChanged
from agent.container.exec import run_command
from agent.container.host import Host
from agent.container.running import Running
from agent.definition.model import Container, Health
from agent.errors import CleatError
from agent.systemd.text import clean

_OUTPUT_MAX = 500

STARTING, HEALTHY, UNHEALTHY = "starting", "healthy", "unhealthy"


class Progress(msgspec.Struct, frozen=True):
    """Where a check stands: the verdict, failures in a row, whether the start-up command has succeeded."""

    health: str = STARTING
    failures: int = 0
    is_started: bool = False


def judge(progress: Progress, health: Health, *, success: bool, age: float) -> Progress:
    """The next standing after one result `age` seconds into the run; pure."""
    if health.startup_command and not progress.is_started:
        if success:
            return Progress(progress.health, 0, is_started=True)
        failures = progress.failures + 1
        over = 0 < health.startup_retries <= failures
        return Progress(UNHEALTHY if over else progress.health, failures)
    if success:
        return Progress(HEALTHY, 0, is_started=True)
    if progress.health == STARTING and age < health.start_period_sec:
        return progress
    failures = progress.failures + 1
    verdict = UNHEALTHY if failures >= max(1, health.retries) else progress.health
    return Progress(verdict, failures, is_started=progress.is_started)


class HealthCheck:
    """Runs the command while the container does; `post` hears of changes only."""

    def __init__(
        self,
        host: Host,
        container: Container,
        running: Running,
        post: Callable[[Event], None],
        *,
        started_at: float,
        health: str,
    ) -> None:
        self._host = host
        self._container = container
        self._running = running
        self._post = post
        self._started_at = started_at
        self._is_fresh = health in {"", STARTING}
        self._progress = Progress(health or STARTING, 0, is_started=health in {HEALTHY, UNHEALTHY})
        self._unpaused = asyncio.Event()
        self._unpaused.set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._probe_on(), name=f"health of {self._container.name}")

    def set_paused(self, *, paused: bool) -> None:
        if paused:
            self._unpaused.clear()
        else:
            self._unpaused.set()

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _probe_on(self) -> None:
        health = self._container.health
        wait = 0.0 if self._is_fresh else health.interval_sec
        while True:
            is_startup = bool(health.startup_command) and not self._progress.is_started
            await asyncio.sleep(wait)
            wait = health.startup_interval_sec if is_startup else health.interval_sec
            await self._unpaused.wait()
            success, output = await self._probe(health, is_startup=is_startup)
            self._judge(success=success, output=output)

    async def _probe(self, health: Health, *, is_startup: bool) -> tuple[bool, str]:
        command = health.startup_command if is_startup else health.command
        limit = health.startup_timeout_sec if is_startup else health.timeout_sec
        try:
            code, output = await run_command(self._host, self._container, self._running, command, limit)
        except CleatError as e:
            return False, clean(str(e), _OUTPUT_MAX)
        return code == 0, clean(output.decode(errors="replace").strip(), _OUTPUT_MAX)

    def _judge(self, *, success: bool, output: str) -> None:
        before = self._progress
        age = time.time() - self._started_at
        self._progress = judge(before, self._container.health, success=success, age=age)
        if self._progress.health != before.health:
            at_startup = bool(self._container.health.startup_command) and not self._progress.is_started
            self._post(HealthChanged(self._progress.health, output, at_startup=at_startup))
