# SPDX-License-Identifier: Apache-2.0
"""Credentials (systemd.exec(5), LoadCredential= and its kin) for a container: read at each start, handed over as files.

They go into a tmpfs of the container's own mount namespace, bound read-only at /run/credentials. Their content is
nowhere else: not on disk, in no spec, record, argument or message.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping

from agent.definition.model import Container, Credential
from agent.errors import CleatError, CommandNotFound
from agent.spawn import tool
from agent.spawn.request import Files
from agent.spawn.spawner import Spawner

TOTAL_MAX = 1 << 20
_DECRYPT_TIMEOUT = 60.0
# Room for names and for files that end in the middle of a page.
_TMPFS_SIZE = 4 << 20


class Secrets:
    """Content by name. It has no repr of its own, so that it cannot slip into a message."""

    def __init__(self, content: Mapping[str, bytes]) -> None:
        self._content = dict(content)

    def __bool__(self) -> bool:
        return bool(self._content)

    def mount(self, folder: str, uid: int, gid: int) -> Files:
        """A tmpfs over `folder` that holds them, for this (host's) user."""
        return Files(target=folder, content=self._content, size=_TMPFS_SIZE, uid=uid, gid=gid)


async def load(container: Container, spawner: Spawner) -> Secrets:
    """All [[credential]] tables. Raises CleatError with the table's key."""
    content: dict[str, bytes] = {}
    for i, credential in enumerate(container.credential):
        key = f"credential[{i}]"
        content[credential.name] = await _load(credential, container.name, key, spawner)
        if sum(map(len, content.values())) > TOTAL_MAX:
            raise CleatError(
                "the credentials are too large",
                container=container.name,
                key=key,
                why=f"together they may have {TOTAL_MAX} bytes",
                hint="hand over larger files by a [[mount]]",
            )
    return Secrets(content)


async def _load(credential: Credential, container: str, key: str, spawner: Spawner) -> bytes:
    if credential.load_encrypted:
        return await _decrypt(credential, container, f"{key}.load_encrypted", spawner)
    if credential.load:
        return _read(credential.load, container, f"{key}.load", _check_safe)
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if not folder:
        raise CleatError(
            f"the agent has no credential {credential.inherit}",
            container=container,
            key=f"{key}.inherit",
            hint=f"systemctl edit cleat: LoadCredential={credential.inherit}:/PATH",
        )
    # systemd's own folder, with modes of its choice.
    return _read(os.path.join(folder, credential.inherit), container, f"{key}.inherit", lambda _: "")


def _check_safe(found: os.stat_result) -> str:
    """Why a file is not to be trusted, "" if it is."""
    if found.st_uid not in {0, os.geteuid()}:
        return f"it belongs to user {found.st_uid}, who could change it"
    if stat.S_IMODE(found.st_mode) & 0o022:
        return f"others may write to it (mode {stat.S_IMODE(found.st_mode):04o})"
    return ""


def _read(path: str, container: str, key: str, check: Callable[[os.stat_result], str]) -> bytes:
    """A regular file of limited size; the last part of its path may be no link. Raises CleatError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as e:
        why = "it is a symbolic link" if os.path.islink(path) else e.strerror or ""
        hint = f"name the file itself: {os.path.realpath(path)}" if os.path.islink(path) else "create it"
        raise CleatError(f"cannot read {path}", container=container, key=key, why=why, hint=hint) from e
    with open(fd, "rb") as f:
        found = os.fstat(fd)
        why = check(found) if stat.S_ISREG(found.st_mode) else "it is no regular file"
        if why:
            raise CleatError(f"{path} is not used", container=container, key=key, why=why, hint=f"chmod 0600 {path}")
        return f.read(TOTAL_MAX + 1)


async def _decrypt(credential: Credential, container: str, key: str, spawner: Spawner) -> bytes:
    """systemd-creds(1); the name is bound into the file, so it must be the same."""
    path = credential.load_encrypted
    argv = ["systemd-creds", f"--name={credential.name}", "decrypt", path, "-"]
    try:
        result = await tool.run(argv, timeout=_DECRYPT_TIMEOUT, limit=TOTAL_MAX + 1, spawner=spawner)
    except CommandNotFound as e:
        raise CleatError(
            "systemd-creds is missing", container=container, key=key, hint="install systemd 250 or newer"
        ) from e
    if result.returncode != 0:
        raise CleatError(
            f"{path} cannot be decrypted",
            container=container,
            key=key,
            why=result.stderr.decode(errors="replace").strip()[-300:],
            hint=f"encrypt it on this host: systemd-creds encrypt --name={credential.name} FILE {path}",
        )
    return result.stdout
