# SPDX-License-Identifier: Apache-2.0
"""Runs inside a test host: does all that can be done to containers, in a random order and much of it at once.

    chaos.py SEED OPERATIONS safe     the agent and its executor are let live
    chaos.py SEED OPERATIONS deadly   both are killed and restarted too

Prints JSON: commands that hung or failed with a traceback.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

FOLDER = Path("/etc/cleat/containers")
TABLES = {
    "c-plain": "",
    "c-runc": '[runtime]\nname = "runc"\n',
    "c-enabled": '[cgroup]\nmode = "enabled"\n',
    "c-shared": '[cgroup]\nmode = "no-conmon"\n',
    "c-disabled": '[cgroup]\nmode = "disabled"\n',
    "c-groups": '[cgroup]\nmanager = "cgroupfs"\n',
    "c-socket": '[[socket]]\nlisten_stream = "/run/chaos.sock"\n',
    "c-health": '[health]\ncommand = ["true"]\ninterval_sec = 1\n',
}
SCRIPTS = (
    "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done",
    "trap '' TERM; while :; do sleep 1000 & wait; done",
    "sleep 0.05",
    "exit 1",
)
DEADLINE = 60.0

Operation = Callable[[], Coroutine[Any, Any, None]]


class Chaos:
    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.unexpected: list[str] = []

    @property
    def name(self) -> str:
        return self.dice.choice(list(TABLES))

    async def run(self, *words: str) -> str:
        """Exit codes say nothing here: many a command comes too late for what it is about."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*words, stdout=pipe, stderr=pipe)
        try:
            async with asyncio.timeout(DEADLINE):
                out, err = await process.communicate()
        except TimeoutError:
            process.kill()
            self.unexpected.append(f"{words} hangs")
            return ""
        if b"Traceback" in err:
            self.unexpected.append(f"{words}: {err.decode(errors='replace')}")
        return out.decode()

    def define(self) -> None:
        name = self.name
        restart = self.dice.choice(["0", "10ms", "1s"])
        service = f'[service]\nrestart_sec = "{restart}"\nrestart_steps = 0\ntimeout_stop_sec = "300ms"\n'
        command = json.dumps(["/bin/sh", "-c", self.dice.choice(SCRIPTS)])
        # The comment makes it another definition each time.
        text = f'# {self.dice.random()}\nrootfs = "/srv/base"\ncommand = {command}\n{service}{TABLES[name]}'
        fresh = FOLDER / f"{name}.new"
        fresh.write_text(text, encoding="utf-8")
        fresh.rename(FOLDER / f"{name}.toml")

    async def change(self) -> None:
        self.define()
        await self.run("cleat", "reload-agent")

    async def remove(self) -> None:
        (FOLDER / f"{self.name}.toml").unlink(missing_ok=True)
        await self.run("cleat", "reload-agent")

    async def command(self) -> None:
        verb = self.dice.choice(["start", "stop", "restart"])
        await self.run("cleat", verb, *self.dice.sample(list(TABLES), self.dice.choice([1, 1, 3])))

    async def signal(self) -> None:
        await self.run("cleat", "kill", "-s", self.dice.choice(["KILL", "TERM", "HUP"]), self.name)

    async def pause(self) -> None:
        name = self.name
        await self.run("cleat", "pause", name)
        await self.run("cleat", "unpause", name)

    async def execute(self) -> None:
        how = ("timeout", "-s", self.dice.choice(["KILL", "TERM"]), str(self.dice.uniform(0.02, 0.4)))
        await self.run(*how, "cleat", "exec", self.name, "--", "sleep", "5")

    async def handle(self) -> None:
        await self.run("systemctl", self.dice.choice(["start", "stop", "restart"]), f"cleat@{self.name}.service")

    async def scope(self) -> None:
        await self.run("systemctl", "stop", f"cleat-{self.name}.scope")

    async def conmon(self) -> None:
        pids = (await self.run("pgrep", "-x", "conmon")).split()
        if pids:
            with suppress(ProcessLookupError):
                os.kill(int(self.dice.choice(pids)), 9)

    async def agent(self) -> None:
        if self.dice.random() < 0.5:
            await self.run("systemctl", "restart", "cleat.service")
        else:
            await self.kill("cleat.service")

    async def executor(self) -> None:
        await self.kill("cleat-executor.service")

    async def kill(self, unit: str) -> None:
        await self.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", unit)

    async def reign(self, operations: int, *, deadly: bool) -> None:
        mild: list[Operation] = [self.change, self.remove, self.command, self.command, self.command, self.signal]
        mild += [self.pause, self.execute, self.handle, self.scope, self.conmon]
        choices = [*mild, self.agent, self.executor] if deadly else mild
        async with asyncio.TaskGroup() as group:
            for _ in range(operations):
                group.create_task(self.dice.choice(choices)())
                await asyncio.sleep(self.dice.uniform(0, 0.2))


def main() -> None:
    seed, operations, how = sys.argv[1:]
    chaos = Chaos(int(seed))
    for _ in TABLES:
        chaos.define()
    asyncio.run(chaos.reign(int(operations), deadly=how == "deadly"))
    json.dump(chaos.unexpected, sys.stdout)


main()
