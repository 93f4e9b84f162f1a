# SPDX-License-Identifier: Apache-2.0
"""Users and groups of a container: "user[:group]" to numbers, by the passwd(5) and group(5) of its own root.

Runtimes get numbers only: that they looked up names themselves was CVE-2026-30892. The files are the
image's, thus an attacker's: lines that are not well formed are passed over, and a number always means that
id, never a user called so.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from agent.errors import InvalidArgument
from agent.oci import rootpath
from agent.oci.inputs import Identity

MAX_ID = (1 << 32) - 2  # (uid_t)-1 means "no change" to chown(2) and setresuid(2)

_FILE_LIMIT = 8 << 20
_MAX_GROUPS = 65536  # NGROUPS_MAX, limits.h
_NO_HOME = "/"


class _User(msgspec.Struct, frozen=True):
    name: str
    uid: int
    gid: int
    home: str


class _Group(msgspec.Struct, frozen=True):
    name: str
    gid: int
    members: frozenset[str]


def identity_in_root(root: str | Path | int, user: str, groups: Iterable[str] = (), *, container: str = "") -> Identity:
    """Who `user` ("", "name", "uid", "name:group", "uid:gid" ...) with these extra groups is inside `root`.

    Raises InvalidArgument for unknown names, and for files that are not fit to be read.
    """
    texts = (_read(root, path) for path in ("/etc/passwd", "/etc/group"))
    return resolve(user, groups, *texts, container=container)


def _read(root: str | Path | int, path: str) -> bytes:
    try:
        return rootpath.read_in_root(root, path, _FILE_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as e:
        raise InvalidArgument(f"cannot read {path} of the root file system", why=e.strerror or str(e)) from e


def resolve(user: str, groups: Iterable[str], passwd: bytes, group: bytes, *, container: str = "") -> Identity:
    """The pure part: as podman-run(1), --user and --group-add.

    Without a user: root, and no groups but `groups`. A user without a group has the groups that list them;
    with one, that only. A uid without an entry has gid 0. Home is "/" where there is none.
    """
    name, colon, group_name = user.partition(":")
    if "\0" in user or "\n" in user or (colon and not group_name) or ":" in group_name:
        raise _invalid(f"{user!r} is not of the form user[:group]", "user", container)
    known = list(_groups(group))
    entry = _find_user(name, passwd)
    uid = entry.uid if entry else parse_id(name or "0")
    if uid is None:
        raise _unknown("user", name, "/etc/passwd", container)
    gid = _gid(group_name, known, container, "user") if colon else (entry.gid if entry else 0)
    extra: list[int] = []
    if user:
        extra = [gid] if colon or not entry else [gid, *(g.gid for g in known if entry.name in g.members)]
    extra += [_gid(item, known, container, "groups") for item in groups]
    return Identity(
        uid=uid,
        gid=gid,
        additional_gids=tuple(dict.fromkeys(extra))[:_MAX_GROUPS],
        home=entry.home if entry else _NO_HOME,
    )


def parse_id(text: str) -> int | None:
    """A user or group id written in decimal; None for anything else, and for (uid_t)-1 and beyond."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 10):
        return None
    value = int(text)
    return value if value <= MAX_ID else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _find_user(name: str, passwd: bytes) -> _User | None:
    """The first entry of that name, or, for a number (and nobody named: 0), of that uid."""
    if not name or _is_number(name):
        uid = parse_id(name or "0")
        return next((u for u in _users(passwd) if u.uid == uid), None)
    return next((u for u in _users(passwd) if u.name == name), None)


def _gid(name: str, known: Iterable[_Group], container: str, key: str) -> int:
    gid = parse_id(name) if _is_number(name) else next((g.gid for g in known if g.name == name), None)
    if gid is None:
        raise _unknown("group", name, "/etc/group", container, key)
    return gid


def _fields(data: bytes, count: int) -> Iterator[list[str]]:
    for line in data.split(b"\n"):
        fields = os.fsdecode(line.strip()).split(":")
        if len(fields) >= count and fields[0] and not fields[0].startswith(("#", "+", "-")) and "\0" not in fields[0]:
            yield fields


def _users(passwd: bytes) -> Iterator[_User]:
    for fields in _fields(passwd, 4):
        uid, gid = parse_id(fields[2]), parse_id(fields[3])
        if uid is not None and gid is not None:
            yield _User(fields[0], uid, gid, _home(fields[5] if len(fields) > 5 else ""))


def _groups(group: bytes) -> Iterator[_Group]:
    for fields in _fields(group, 3):
        gid = parse_id(fields[2])
        if gid is not None:
            members = fields[3].split(",") if len(fields) > 3 else ()
            yield _Group(fields[0], gid, frozenset(members))


def _home(text: str) -> str:
    # It becomes a variable: nothing that could start a new line or end a string (CVE-2022-4318).
    return text if text.startswith("/") and text.isprintable() else _NO_HOME


def _unknown(kind: str, name: str, file: str, container: str, key: str = "user") -> InvalidArgument:
    if _is_number(name):
        return _invalid(f"{name} is no {kind} id", key, container, f"ids go from 0 to {MAX_ID}")
    hint = f"give a number, or a name that {file} of the root file system has"
    return _invalid(f"there is no {kind} {name!r} in the container", key, container, hint)


def _invalid(what: str, key: str, container: str, hint: str = "") -> InvalidArgument:
    return InvalidArgument(what, key=key, container=container, hint=hint)
