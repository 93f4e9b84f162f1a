# SPDX-License-Identifier: Apache-2.0
"""The neighbours a container is started with: folders, settings, scopes, the installed conmon and runtimes.

Tools are looked up at each start and probed once per file on disk, so that what was missing is found as soon as it is
installed, and an upgrade is noticed.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from agent.container import rootless, scope
from agent.container.restore import Restore
from agent.container.volumes import Volumes
from agent.definition.agent_config import AgentConfig
from agent.errors import CleatError, Unsupported
from agent.images.images import Images
from agent.oci.runtime import Features, Runtime
from agent.paths import Paths
from agent.spawn import child, tool
from agent.spawn.spawner import HERE, Remote, Spawner
from agent.systemd import journal
from agent.systemd.fd_store import FdStore
from agent.systemd.scopes import Scopes

CONMON_MINIMUM = (2, 1, 0)
_LABELS_SINCE = (2, 2, 0)


class Conmon(msgspec.Struct, frozen=True):
    """The installed conmon."""

    path: str
    version: tuple[int, ...]
    version_text: str

    @property
    def has_log_labels(self) -> bool:
        return self.version >= _LABELS_SINCE


FileId = tuple[str, int, int]


def _file_id(path: str) -> FileId | None:
    """Which file this is, None when it is not an executable regular file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode) or not os.access(path, os.X_OK):
        return None
    return path, found.st_ino, found.st_mtime_ns


def find_conmon(candidates: Sequence[str]) -> FileId:
    """The first candidate that can be run. Raises Unsupported with all places."""
    for path in candidates:
        found = _file_id(path)
        if found is not None:
            return found
    present = [path for path in candidates if Path(path).exists()]
    why = f"{present[0]} is not an executable file" if present else f"looked at {', '.join(candidates)}"
    raise Unsupported("conmon cannot be run", why=why, hint="install conmon, or set conmon_path in cleat.toml")


async def probe_conmon(path: str) -> Conmon:
    """Ask for its version. Raises Unsupported when it is too old, or is something else."""
    result = await tool.run([path, "--version"])
    match = re.search(r"version (\d+(?:\.\d+)*)", result.stdout.decode(errors="replace"))
    if match is None:
        raise Unsupported(f"{path} does not say its version", why=result.text[:200], hint="reinstall conmon")
    version = tuple(int(part) for part in match[1].split("."))
    if version < CONMON_MINIMUM:
        least = ".".join(str(n) for n in CONMON_MINIMUM)
        raise Unsupported(f"conmon {match[1]} is too old", why=f"{least} or newer is needed", hint="upgrade conmon")
    return Conmon(path, version, " ".join(result.stdout.decode(errors="replace").split()))


def _not_told(pid: int, text: str) -> asyncio.Future[bool]:
    told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    told.set_result(False)
    return told


class Host:
    """One per agent."""

    def __init__(
        self, paths: Paths, config: AgentConfig, scopes: Scopes, fd_store: FdStore, executor: Remote | None = None
    ) -> None:
        """Without an executor everything is started by this process, and there are no handles to speak for."""
        self.paths = paths
        self.config = config
        self.scopes = scopes
        self.fd_store = fd_store
        self.spawner: Spawner = executor or HERE
        self.notify_as = executor.notify_as if executor is not None else _not_told
        self.cgroup_root = ""
        self.scope_prefix = scope.AGENT
        self.bound_to = ""
        self.stdio: tuple[int, int] | None = None
        self.conmon_environment = child.base_environment() | config.conmon_environment
        self.launch_slots = asyncio.Semaphore(config.parallel_starts or 4 * (os.cpu_count() or 1))
        # What copies, removes and measures files of containers runs by this.
        self.files = rootless.for_files()
        unpacker = self.files if rootless.is_rootless() else self.spawner
        self.images = Images(paths, unpacker, self.files)
        self.volumes = Volumes(paths.volumes, unpacker, self.files)
        # The first process of a running container, by its name; None when it does not run. Set by who owns them all.
        self.payload_pid: Callable[[str], int | None] = lambda _: None
        # The id of a running container, by its name; "" when it does not run. Set by the same.
        self.running_id: Callable[[str], str] = lambda _: ""
        # Whether another container is started after this one. Set by who knows all definitions.
        self.is_needed: Callable[[str], bool] = lambda _: True
        self._conmon: tuple[FileId, Conmon] | None = None
        self._runtimes: dict[str, tuple[FileId, Runtime, Features]] = {}
        self._probing = asyncio.Lock()
        self._unwritable: set[str] = set()
        # What the next launch of a container goes on from, by its name; taken by that launch.
        self.restores: dict[str, Restore] = {}

    async def conmon(self) -> Conmon:
        """The conmon to use now. Raises Unsupported or CommandNotFound."""
        found = find_conmon(self.config.conmon_path)
        if self._conmon is None or self._conmon[0] != found:
            async with self._probing:
                if self._conmon is None or self._conmon[0] != found:
                    self._conmon = found, await probe_conmon(found[0])
        return self._conmon[1]

    @property
    def known_runtimes(self) -> tuple[Runtime, ...]:
        return tuple(runtime for _, runtime, _ in self._runtimes.values())

    async def runtime(self, name: str) -> tuple[Runtime, Features]:
        """The runtime to use now, probed. Raises Unsupported when it is missing or too old."""
        found = self._known_runtime(name)
        if found is None:
            async with self._probing:
                found = self._known_runtime(name) or await self._probe_runtime(name)
        return found

    def _known_runtime(self, name: str) -> tuple[Runtime, Features] | None:
        cached = self._runtimes.get(name)
        return cached[1:] if cached is not None and _file_id(cached[0][0]) == cached[0] else None

    async def _probe_runtime(self, name: str) -> tuple[Runtime, Features]:
        candidates = self.config.runtimes.get(name, ())
        runtime = Runtime.find(name, candidates, child.base_environment()["PATH"], root=self._root_of(name))
        runtime = msgspec.structs.replace(runtime, spawner=self.spawner)
        features = await runtime.probe()
        file_id = _file_id(runtime.path)
        if file_id is None:
            raise Unsupported(f"{runtime.path} went away", hint=f"install {name}")
        self._runtimes[name] = file_id, runtime, features
        for warning in features.warnings:
            journal.send(journal.Event.FEATURE_MISSING, warning)
        return runtime, features

    async def runtime_or_absent(self, name: str) -> Runtime:
        """The runtime of what runs already; one that is missing is looked for again by each of its commands."""
        try:
            return (await self.runtime(name))[0]
        except CleatError as e:
            # Perhaps its package is being upgraded. What runs needs it for little, and not now.
            journal.send(journal.Event.FEATURE_MISSING, "what it runs is taken over all the same", error=e)
        path = next(iter(self.config.runtimes.get(name, ())), name)
        return Runtime(name=Path(name).name, path=str(path), root=self._root_of(name), spawner=self.spawner)

    def _root_of(self, runtime: str) -> str:
        return os.fspath(self.paths.runtime / "runtime" / Path(runtime).name)

    def report_unwritable(self, name: str, error: OSError) -> None:
        """Say that a container's record cannot be stored, once until one is stored again; what runs goes on."""
        if name not in self._unwritable:
            self._unwritable.add(name)
            failure = CleatError(
                "its record cannot be stored",
                container=name,
                file=os.fspath(self.paths.records),
                why=error.strerror or str(error),
                hint=f"free space on {self.paths.runtime}",
            )
            journal.send(journal.Event.RECORD_UNWRITABLE, "", container=name, error=failure)

    def record_stored(self, name: str) -> None:
        self._unwritable.discard(name)
