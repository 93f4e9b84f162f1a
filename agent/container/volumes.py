# SPDX-License-Identifier: Apache-2.0
"""Named volumes: folders that outlive containers.

A new one is filled with what the root file system has at its target, owner and mode included, as podman-volume(1) does.
The root is a stranger's: its folder is opened by openat2(2) inside the root, and cp(1) follows no link in it. A volume
comes into being by rename, so it is filled or not there. Owners in it are the container's own ids, whatever user
namespace it runs in.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

from agent import process, storage
from agent.definition.model import Container, Mount, MountType
from agent.errors import CleatError, InvalidArgument
from agent.oci import rootpath
from agent.spawn import tool
from agent.spawn.spawner import HERE, Spawner

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,254}")
_COPY_TIMEOUT = 600.0
_IMAGE_VOLUMES_MAX = 64


def of_image(container: Container, targets: Sequence[str]) -> tuple[Mount, ...]:
    """The volumes that an image asks for and no [[mount]] covers. They are the container's, and stay with its name."""
    covered = {os.path.normpath(mount.target) for mount in container.mount}
    found: list[Mount] = []
    for target in targets[:_IMAGE_VOLUMES_MAX]:
        path = os.path.normpath("/" + target.lstrip("/"))
        if path != "/" and path not in covered:
            covered.add(path)
            found.append(Mount(type=MountType.VOLUME, source=anonymous_name(container.name, path), target=path))
    return tuple(found)


def anonymous_name(container: str, target: str) -> str:
    return f"{container}-{hashlib.sha256(target.encode()).hexdigest()[:12]}"


def named(mounts: Iterable[Mount]) -> frozenset[str]:
    return frozenset(mount.source for mount in mounts if mount.type is MountType.VOLUME)


class Volumes:
    """All volumes below one folder. Who wants the same new one waits until it is filled."""

    def __init__(self, folder: Path, spawner: Spawner, files: Spawner = HERE) -> None:
        """`spawner` fills; `files` removes."""
        self.folder = folder
        self._spawner = spawner
        self._files = files
        self._locks: dict[str, asyncio.Lock] = {}

    def data(self, name: str) -> Path:
        """Where a volume's files are. Raises InvalidArgument for what is no name of a volume."""
        if not _NAME.fullmatch(name):
            raise InvalidArgument(
                f"{name!r} is not the name of a volume",
                key="mount.source",
                hint='use letters, digits and . _ -; for a folder of the host set type = "bind"',
            )
        return self.folder / name / "_data"

    async def ready(self, mount: Mount, root: str, container: str) -> Path:
        """The volume's folder, made and filled when new. Raises CleatError."""
        data = self.data(mount.source)
        if data.is_dir():
            return data
        lock = self._locks.setdefault(mount.source, asyncio.Lock())
        async with lock:
            try:
                if not data.is_dir():
                    await self._create(data, mount, root)
            except OSError as e:
                if isinstance(e, CleatError):
                    raise
                raise CleatError(
                    f"cannot create volume {mount.source}",
                    container=container,
                    key="mount",
                    why=e.strerror or str(e),
                    hint="df /var/lib/cleat",
                ) from e
        self._locks.pop(mount.source, None)
        return data

    async def _create(self, data: Path, mount: Mount, root: str) -> None:
        # Only root enters: volumes may hold set-id programs of containers.
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        await storage.remove_tree(*self._stale(), spawner=self._files)
        own = process.ProcessRef.of(os.getpid())
        assert own is not None
        work = self.folder / f".{own.pid}-{own.start_time}-{secrets.token_hex(6)}"
        (work / "_data").mkdir(mode=0o755, parents=True)
        try:
            await _fill(work / "_data", root, mount.target, self._spawner)
            _put(work, data.parent)
        finally:
            await storage.remove_tree(work, spawner=self._files)

    def _stale(self) -> list[Path]:
        """Half-filled ones of processes that are gone."""
        found: list[Path] = []
        for path in self.folder.glob(".*-*-*"):
            pid, _, rest = path.name[1:].partition("-")
            start = rest.partition("-")[0]
            if not (pid.isdecimal() and start.isdecimal() and process.start_time(int(pid)) == int(start)):
                found.append(path)
        return found

    def all_names(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.folder) if _NAME.fullmatch(name))
        except OSError:
            return []


def _put(made: Path, folder: Path) -> None:
    try:
        made.rename(folder)
    except OSError as e:
        # Another process was faster: what it made is as good.
        if e.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
            raise


async def _fill(data: Path, root: str, target: str, spawner: Spawner) -> None:
    """Copy what the root has at the target; a target that is missing or no folder leaves the volume empty."""
    if not root:
        return
    with rootpath.opened_root(root) as root_fd:
        try:
            source = rootpath.open_in_root(root_fd, target, os.O_PATH | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return
    try:
        # -a: links are copied as links. -x: nothing that is mounted below.
        argv = ["cp", "-a", "-x", "--reflink=auto", "--no-target-directory", "--", "/proc/self/fd/3/.", os.fspath(data)]
        result = await tool.run(argv, pass_fds=(source,), timeout=_COPY_TIMEOUT, spawner=spawner)
    finally:
        os.close(source)
    if result.returncode != 0:
        raise CleatError("cannot fill a new volume", key="mount", why=result.text[-300:], hint="df /var/lib/cleat")
