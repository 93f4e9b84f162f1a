# SPDX-License-Identifier: Apache-2.0
"""A container's user namespace: which ids it gets, and a namespace to map mounts by (user_namespaces(7)).

`auto` takes the lowest free range of user `containers` in /etc/subuid and /etc/subgid. Each bundle says in its file
`idmap` which ranges it has, so that they are known whoever started it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from agent import process
from agent.definition.model import Container
from agent.errors import CleatError, Unsupported
from agent.oci import idmap
from agent.oci.idmap import Mappings
from agent.oci.inputs import IdMapping
from agent.paths import Paths

_FILE = "idmap"
_PATIENCE = 10.0
_decoder = msgspec.json.Decoder(Mappings)


class UserNamespace:
    """The mappings, and an fd of a namespace that has them; it lives until close()."""

    def __init__(self, mappings: Mappings, fd: int) -> None:
        self.mappings = mappings
        self.fd = fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        # The net below close(), for a start that fails in between.
        self.close()


def is_wanted(container: Container) -> bool:
    return container.security.user_namespace != "host"


def reserve(container: Container, paths: Paths, bundle: Path) -> Mappings:
    """The ids of this incarnation, noted in its bundle. Raises CleatError."""
    security = container.security
    try:
        if security.user_namespace == "auto":
            mappings = idmap.auto(_read("/etc/subuid"), _read("/etc/subgid"), _in_use(paths.bundles))
        else:
            mappings = idmap.of_definition(security.uid_map, security.gid_map)
        (bundle / _FILE).write_bytes(msgspec.json.encode(mappings))
    except CleatError as e:
        e.container = container.name
        raise
    # crun enters the bundle as the container's root: it, and nobody else, may pass through.
    os.chown(bundle, -1, mappings.root[1])
    os.chmod(bundle, 0o710)
    return mappings


def _in_use(bundles: Path) -> Iterator[Mappings]:
    for entry in os.scandir(bundles):
        with suppress(OSError, msgspec.DecodeError):
            yield _decoder.decode(Path(entry.path, _FILE).read_bytes())


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


async def create(mappings: Mappings) -> UserNamespace:
    """A namespace with these mappings. Made by a child, since a process cannot leave one again. Raises Unsupported."""
    stdin_read, stdin_write = os.pipe2(os.O_CLOEXEC)
    stdout_read, stdout_write = os.pipe2(os.O_CLOEXEC)
    child: process.Process | None = None
    try:
        os.write(stdin_write, b"\n")
        # cat answers from inside the new namespace, then waits for more.
        child = process.spawn(
            ["unshare", "--user", "cat"],
            env=process.base_environment(),
            fds=(stdin_read, stdout_write, process.null_fd()),
        )
        os.close(stdout_write)
        stdout_write = -1
        if not await _readable(stdout_read) or os.read(stdout_read, 1) != b"\n":
            raise Unsupported("cannot make a user namespace", why="unshare --user failed", hint=_HINT)
        _write_map(f"/proc/{child.pid}/uid_map", mappings.uids)
        _write_map(f"/proc/{child.pid}/gid_map", mappings.gids)
        fd = os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        return UserNamespace(mappings, fd)
    except OSError as e:
        if isinstance(e, CleatError):
            raise
        raise Unsupported("cannot make a user namespace", why=e.strerror or str(e), hint=_HINT) from e
    finally:
        for pipe in {stdin_read, stdin_write, stdout_read, stdout_write} - {-1}:
            os.close(pipe)
        if child is not None:
            await asyncio.shield(child.reap())


_HINT = "check sysctl user.max_user_namespaces, and the ranges in security.uid_map"


async def _readable(fd: int) -> bool:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(fd, _resolve, ready)
    try:
        async with asyncio.timeout(_PATIENCE):
            await ready
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)
    return True


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _write_map(path: str, mappings: Iterable[IdMapping]) -> None:
    lines = "".join(f"{m.container_id} {m.host_id} {m.size}\n" for m in mappings)
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, lines.encode())
    finally:
        os.close(fd)
