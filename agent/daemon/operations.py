# SPDX-License-Identifier: Apache-2.0
"""What the bus methods do: arguments checked, the right supervisor asked, results as JSON text or plain values."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import msgspec

from agent.daemon import info
from agent.daemon.agent import Agent
from agent.daemon.handles import Handles
from agent.errors import CleatError, InvalidArgument, Unsupported

_DEFAULT_TIMEOUT = 2**64 - 1
_USEC = 1_000_000


class Operations:
    """One method per row of api.py; the first argument is the caller's bus name."""

    def __init__(self, agent: Agent, handles: Handles) -> None:
        self.agent = agent
        self.handles = handles
        self.subscribers: set[str] = set()

    async def status(self, caller: str, names: list[str]) -> str:
        return msgspec.json.encode(self.agent.statuses(names)).decode()

    async def start(self, caller: str, name: str) -> None:
        await self.agent.start_with_needs(name)

    async def stop(self, caller: str, name: str, timeout_usec: int) -> None:
        timeout = None if timeout_usec == _DEFAULT_TIMEOUT else timeout_usec / _USEC
        await self.agent.stop_with_dependents(name, timeout)

    async def restart(self, caller: str, name: str) -> None:
        await self.agent.restart(name)

    async def reload(self, caller: str, name: str) -> None:
        await self.agent.supervisor(name).reload()

    async def pause(self, caller: str, name: str) -> None:
        await self.agent.supervisor(name).pause()

    async def resume(self, caller: str, name: str) -> None:
        await self.agent.supervisor(name).resume()

    async def kill(self, caller: str, name: str, signum: int, everyone: bool) -> None:  # noqa: FBT001 a bus argument
        if signum not in signal.valid_signals():
            raise InvalidArgument(f"no signal has the number {signum}", container=name, hint="kill -l lists them")
        self.agent.supervisor(name).kill(signum, everyone=everyone)

    async def wait(self, caller: str, name: str) -> int:
        return await self.agent.supervisor(name).wait()

    async def inspect(self, caller: str, name: str, with_spec: bool) -> str:  # noqa: FBT001 a bus argument
        supervisor = self.agent.supervisor(name)
        status = msgspec.to_builtins(supervisor.status())
        found: dict[str, Any] = {
            **status,
            "definition_table": supervisor.definition.raw,
            "digest": supervisor.definition.digest,
            "wanted": supervisor.wanted,
        }
        running = supervisor.running
        if running is not None:
            bundle = self.agent.host.paths.bundle(running.id)
            found |= {
                "cgroup": running.cgroup,
                "bundle": os.fspath(bundle),
                "runtime": running.runtime.path,
                "attach_socket": os.fspath(bundle / "attach"),
            }
            if with_spec:
                found["spec"] = _read_json(os.fspath(bundle / "config.json"))
        return json.dumps(found)

    async def plan(self, caller: str) -> str:
        self.agent.load()
        return self._plan_json(self.agent.plan())

    async def reload_definitions(self, caller: str) -> str:
        return self._plan_json(await self.agent.reconcile())

    def _plan_json(self, actions: Any) -> str:
        return json.dumps(
            {
                "actions": [
                    {"action": a.verb.value, "name": a.name, "reason": a.reason, "keys": list(a.keys)} for a in actions
                ],
                "diagnostics": msgspec.to_builtins(self.agent.loaded.diagnostics),
            }
        )

    async def info(self, caller: str) -> str:
        return json.dumps(await info.gather(self.agent))

    async def stats(self, caller: str, names: list[str]) -> str:
        return self._missing("stats")

    async def top(self, caller: str, name: str) -> str:
        return self._missing("top")

    async def exec_create(self, caller: str, name: str, options: str) -> tuple[str, str, str]:
        self._missing("exec")
        return "", "", ""

    async def exec_start(self, caller: str, session: str) -> None:
        self._missing("exec")

    async def exec_wait(self, caller: str, session: str) -> int:
        self._missing("exec")
        return 0

    async def exec_kill(self, caller: str, session: str, signum: int) -> None:
        self._missing("exec")

    async def attach(self, caller: str, name: str) -> tuple[str, str, bool]:
        self._missing("attach")
        return "", "", False

    async def checkpoint(self, caller: str, name: str, options: str) -> str:
        return self._missing("checkpoint")

    async def restore(self, caller: str, name: str, options: str) -> str:
        return self._missing("restore")

    async def pull(self, caller: str, name: str) -> str:
        return self._missing("pull")

    async def images(self, caller: str) -> str:
        return self._missing("images")

    async def prune(self, caller: str, dry_run: bool) -> str:  # noqa: FBT001 a bus argument
        return self._missing("prune")

    def _missing(self, what: str) -> str:
        raise Unsupported(f"this version cannot {what} yet")

    async def start_handle(self, caller: str, name: str) -> None:
        await self.handles.start(caller, name)

    async def stop_handle(self, caller: str, name: str) -> None:
        await self.handles.stop(caller, name)

    async def reload_handle(self, caller: str, name: str) -> None:
        await self.handles.reload(caller, name)

    async def subscribe(self, caller: str) -> None:
        self.subscribers.add(caller)

    async def unsubscribe(self, caller: str) -> None:
        self.subscribers.discard(caller)


def _read_json(path: str) -> Any:
    try:
        with open(path, "rb") as f:
            return json.load(f)
    except (OSError, ValueError) as e:
        raise CleatError(f"cannot read {path}", why=str(e)) from e
