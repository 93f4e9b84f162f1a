# SPDX-License-Identifier: Apache-2.0
"""What the bus methods do: arguments checked, the right supervisor asked, results as JSON text or plain values."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from agent.container import checkpoint as checkpoints
from agent.container import figures, preview, verbs
from agent.container.attach import attach_point
from agent.container.running import Running
from agent.container.supervisor import Supervisor
from agent.daemon import info, stored
from agent.daemon.agent import Agent
from agent.daemon.sessions import Sessions
from agent.errors import AccessDenied, CleatError, InvalidArgument, InvalidState, Unsupported
from agent.process import ProcessRef

_DEFAULT_TIMEOUT = 2**64 - 1
_USEC = 1_000_000


class Operations:
    """One method per row of api.py; the first argument is the caller's bus name."""

    def __init__(
        self,
        agent: Agent,
        peer_uid: Callable[[str], Awaitable[int]],
        peer_pid: Callable[[str], Awaitable[int]],
    ) -> None:
        self.agent = agent
        self.sessions = Sessions(agent.host)
        agent.on_change.append(self.sessions.container_changed)
        self._peer_uid = peer_uid
        self._peer_pid = peer_pid
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
        await verbs.reload(self.agent.supervisor(name))

    async def pause(self, caller: str, name: str) -> None:
        await verbs.pause(self.agent.supervisor(name))

    async def resume(self, caller: str, name: str) -> None:
        await verbs.resume(self.agent.supervisor(name))

    async def kill(self, caller: str, name: str, signum: int, everyone: bool) -> None:  # noqa: FBT001 a bus argument
        if signum not in signal.valid_signals():
            raise InvalidArgument(f"no signal has the number {signum}", container=name, hint="kill -l lists them")
        verbs.kill(self.agent.supervisor(name), signum, everyone=everyone)

    async def wait(self, caller: str, name: str) -> int:
        return await self.agent.present(name).wait()

    async def inspect(self, caller: str, name: str, with_spec: bool) -> str:  # noqa: FBT001 a bus argument
        supervisor = self.agent.supervisor(name)
        if with_spec:
            return json.dumps(await self._spec(supervisor))
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
        return json.dumps(found)

    async def _spec(self, supervisor: Supervisor) -> Any:
        """What the runtime was given for the run of the moment, else what it would be given now."""
        running = supervisor.running
        if running is not None:
            return _read_json(os.fspath(self.agent.host.paths.bundle(running.id) / "config.json"))
        container = supervisor.definition.container
        return await preview.spec_of(self.agent.host, container, supervisor.listening.names_with(container))

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
        """Of the named containers, which must run, or of all that do."""
        if names:
            chosen = [(name, self._running(self.agent.present(name), "measure")) for name in names]
        else:
            every = sorted(self.agent.supervisors.items())
            chosen = [(name, s.running) for name, s in every if s.running is not None and s.state.is_up]
        found = [figures.stats(name, running) for name, running in chosen]
        return msgspec.json.encode(found).decode()

    async def top(self, caller: str, name: str) -> str:
        running = self._running(self.agent.supervisor(name), "look into")
        return msgspec.json.encode(figures.top(running)).decode()

    @staticmethod
    def _running(supervisor: Supervisor, verb: str) -> Running:
        if supervisor.running is None or not supervisor.state.is_up:
            raise InvalidState(
                f"cannot {verb} it: it is {supervisor.state}",
                container=supervisor.name,
                hint=f"cleat start {supervisor.name}",
            )
        return supervisor.running

    async def exec_create(self, caller: str, name: str, options: str) -> tuple[str, str, str]:
        owner = await self._peer_uid(caller)
        session = await self.sessions.create(self.agent.supervisor(name), options, owner)
        return session.id, session.attach_socket, session.control

    async def exec_start(self, caller: str, session: str) -> None:
        found = self.sessions.get(session, await self._peer_uid(caller))
        await found.start(ProcessRef.of(await self._peer_pid(caller)))

    async def exec_wait(self, caller: str, session: str) -> int:
        return await self.sessions.get(session, await self._peer_uid(caller)).wait()

    async def exec_kill(self, caller: str, session: str, signum: int) -> None:
        await self.sessions.kill(session, signum, await self._peer_uid(caller))

    async def attach(self, caller: str, name: str) -> tuple[str, str, bool]:
        supervisor = self.agent.supervisor(name)
        running = self._running(supervisor, "attach to")
        point = attach_point(self.agent.host, supervisor.definition.container, running)
        return point.socket, point.control, point.is_terminal

    async def checkpoint(self, caller: str, name: str, options: str) -> str:
        request = checkpoints.parse_checkpoint(options)
        if request.export:
            await self._require_root(caller, "export")
        supervisor = self.agent.supervisor(name)
        self.sessions.require_none(supervisor)
        path = await checkpoints.checkpoint(supervisor, request)
        return json.dumps({"path": path, "export": request.export})

    async def restore(self, caller: str, name: str, options: str) -> str:
        request = checkpoints.parse_restore(options)
        if request.archive:
            await self._require_root(caller, "import")
        return json.dumps({"id": await checkpoints.restore(self.agent.supervisor(name), request)})

    async def _require_root(self, caller: str, key: str) -> None:
        """Paths of a caller's choice are read and written as root, or as the user whose agent this is."""
        if await self._peer_uid(caller) not in {0, os.geteuid()}:
            raise AccessDenied("only root may name a file for the agent", key=key, hint="use sudo")

    async def pull(self, caller: str, name: str) -> str:
        return await stored.pull(self.agent, name)

    async def images(self, caller: str) -> str:
        return stored.images(self.agent)

    async def prune(self, caller: str, dry_run: bool) -> str:  # noqa: FBT001 a bus argument
        return await stored.prune(self.agent, dry_run=dry_run)

    def _missing(self, what: str) -> str:
        raise Unsupported(f"this version cannot {what} yet")

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
