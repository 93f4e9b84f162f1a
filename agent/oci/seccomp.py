# SPDX-License-Identifier: Apache-2.0
"""Seccomp profiles: containers-common's file (containers.conf(5), seccomp_profile) to OCI `linux.seccomp`.

Rules in the file hold for some capabilities, architectures and kernels only; the OCI object has no such
conditions, so they are decided here, for one container. Rules stay in the file's order.
"""

from __future__ import annotations

import errno
import functools
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import InvalidArgument, Unsupported

Json = dict[str, Any]

# The admin's file before the distribution's.
PATHS = (Path("/etc/containers/seccomp.json"), Path("/usr/share/containers/seccomp.json"))

_KEY = "security.seccomp_profile"
_LIMIT = 1 << 20
_ACTIONS = frozenset(
    f"SCMP_ACT_{name}"
    for name in ("KILL", "KILL_PROCESS", "KILL_THREAD", "TRAP", "ERRNO", "TRACE", "ALLOW", "LOG", "NOTIFY")
)
_WITH_ERRNO = frozenset({"SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"})

# uname(2)'s machine: how profiles name it (Go's names), and libseccomp.
_ARCHITECTURES = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64"),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64"),
    "armv7l": ("arm", "SCMP_ARCH_ARM"),
    "armv8l": ("arm", "SCMP_ARCH_ARM"),
    "i686": ("x86", "SCMP_ARCH_X86"),
    "ppc64le": ("ppc64le", "SCMP_ARCH_PPC64LE"),
    "riscv64": ("riscv64", "SCMP_ARCH_RISCV64"),
    "s390x": ("s390x", "SCMP_ARCH_S390X"),
    "loongarch64": ("loong64", "SCMP_ARCH_LOONGARCH64"),
}


class Host(msgspec.Struct, frozen=True):
    """What conditions are about besides capabilities: uname(2)'s machine, the kernel as (major, minor)."""

    machine: str
    kernel: tuple[int, int]

    @classmethod
    def here(cls) -> Host:
        uname = os.uname()
        return cls(uname.machine, _version(uname.release))


def load(
    profile: str, capabilities: Iterable[str], *, host: Host | None = None, paths: Iterable[Path] = PATHS
) -> Json | None:
    """The seccomp object for a container with this bounding set; None for "unconfined".

    `profile` is "default" (or ""), "unconfined", or the path of a profile. The result is kept per content of
    the file, so nobody may change it. Raises Unsupported when no default profile is installed,
    InvalidArgument for a file that is not there or no profile.
    """
    if profile == "unconfined":
        return None
    path = _default_path(paths) if profile in {"", "default"} else Path(profile)
    try:
        status = path.stat()
        identity = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        return _load(str(path), identity, frozenset(capabilities), host or Host.here())
    except OSError as e:
        raise InvalidArgument(
            "cannot read the seccomp profile",
            file=str(path),
            key=_KEY,
            why=e.strerror or str(e),
            hint='give the path of a profile, "default" or "unconfined"',
        ) from e


def resolve(profile: Mapping[str, Any], capabilities: Iterable[str], host: Host) -> Json:
    """A profile with conditions to the OCI object without. Raises InvalidArgument for what is no profile."""
    bounding = frozenset(capabilities)
    known = {"defaultAction": _action(profile, "defaultAction")}
    found: Json = {**known, **_errno(profile, known["defaultAction"], "defaultErrno", "defaultErrnoRet")}
    found["architectures"] = _architectures(profile, host)
    found["flags"] = _list(profile, "flags")
    found["syscalls"] = [
        _rule(rule) for rule in _list(profile, "syscalls") if _applies(_table(rule, "syscalls"), bounding, host)
    ]
    found |= {key: profile[key] for key in ("listenerPath", "listenerMetadata") if profile.get(key)}
    return {key: value for key, value in found.items() if value != []}


def _default_path(paths: Iterable[Path]) -> Path:
    for path in paths:
        if path.exists():
            return path
    raise Unsupported(
        "there is no default seccomp profile on this host",
        key=_KEY,
        why="none of " + ", ".join(map(str, paths)),
        hint='install golang-github-containers-common (Debian) or containers-common, or set "unconfined"',
    )


@functools.lru_cache(maxsize=32)
def _load(path: str, identity: tuple[int, ...], bounding: frozenset[str], host: Host) -> Json:
    """Read and decided once for each content (`identity`) and set of conditions."""
    del identity
    with open(path, "rb", opener=_open_regular) as file:
        data = file.read(_LIMIT + 1)
    try:
        if len(data) > _LIMIT:
            raise _malformed("", f"larger than {_LIMIT >> 20} MiB")
        return resolve(_table(msgspec.json.decode(data), ""), bounding, host)
    except InvalidArgument as e:
        raise InvalidArgument(e.what, file=path, key=e.key, why=e.why) from e
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise InvalidArgument("this is no seccomp profile", file=path, why=str(e)) from e


def _open_regular(path: str, flags: int) -> int:
    # A named pipe would block for ever.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _version(release: str) -> tuple[int, int]:
    match = re.match(r"(\d{1,9})\.(\d{1,9})", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _architectures(profile: Mapping[str, Any], host: Host) -> list[str]:
    """The native architecture and those the kernel runs beside it; empty = the runtime's native one."""
    given, mapped = _texts(profile, "architectures"), _list(profile, "archMap")
    if given and mapped:
        raise _malformed("archMap", "both architectures and archMap are given")
    native = _ARCHITECTURES.get(host.machine, ("", ""))[1]
    for entry in mapped:
        if native and _table(entry, "archMap").get("architecture") == native:
            return [native, *_texts(entry, "subArchitectures")]
    return given


def _applies(rule: Mapping[str, Any], bounding: frozenset[str], host: Host) -> bool:
    includes, excludes = _conditions(rule, "includes"), _conditions(rule, "excludes")
    names = _names(host.machine)
    wanted = _texts(includes, "arches")
    if (wanted and not names & set(wanted)) or names & set(_texts(excludes, "arches")):
        return False
    if not set(_texts(includes, "caps")) <= bounding or bounding & set(_texts(excludes, "caps")):
        return False
    oldest, newest = includes.get("minKernel"), excludes.get("minKernel")
    return not (oldest and host.kernel < _version(str(oldest))) and not (
        newest and host.kernel >= _version(str(newest))
    )


def _names(machine: str) -> set[str]:
    name = _ARCHITECTURES.get(machine, (machine, ""))[0]
    return {name, "386"} if name == "x86" else {name}


def _conditions(rule: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return _table(rule.get(key) or {}, key)


def _rule(rule: Json) -> Json:
    names = _texts(rule, "names") or ([rule["name"]] if isinstance(rule.get("name"), str) else [])
    if not names:
        raise _malformed("syscalls", "a rule without names")
    action = _action(rule, "action")
    found = {"names": names, "action": action, **_errno(rule, action, "errno", "errnoRet")}
    arguments = [_argument(_table(argument, "args")) for argument in _list(rule, "args")]
    return {**found, "args": arguments} if arguments else found


def _argument(argument: Mapping[str, Any]) -> Json:
    numbers = {key: argument.get(key) or 0 for key in ("index", "value", "valueTwo")}
    operator = argument.get("op")
    if not all(isinstance(n, int) and 0 <= n < 1 << 64 for n in numbers.values()) or not isinstance(operator, str):
        raise _malformed("args", "an argument needs index, value and op")
    if not numbers["valueTwo"]:
        del numbers["valueTwo"]
    return {**numbers, "op": operator}


def _action(table: Mapping[str, Any], key: str) -> str:
    action = table.get(key)
    if action not in _ACTIONS:
        raise _malformed(key, f"{action!r} is no action")
    return str(action)


def _errno(table: Mapping[str, Any], action: str, name_key: str, number_key: str) -> Json:
    """The error number of a rule, given by name or number; the name wins, as in containers-common."""
    name, number = table.get(name_key), table.get(number_key)
    if action not in _WITH_ERRNO or (not name and number is None):
        return {}
    if name:
        number = getattr(errno, str(name), None) if str(name).startswith("E") else None
    if not isinstance(number, int):
        raise _malformed(name_key if name else number_key, f"{name or number!r} is no error number")
    return {number_key: number}


def _list(table: Mapping[str, Any], key: str) -> list[Any]:
    value = table.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _malformed(key, "not a list")
    return value


def _texts(table: Mapping[str, Any], key: str) -> list[str]:
    value = _list(table, key)
    if not all(isinstance(item, str) for item in value):
        raise _malformed(key, "not a list of strings")
    return list(value)


def _table(value: object, key: str) -> Json:
    if not isinstance(value, dict):
        raise _malformed(key, "not an object")
    return value


def _malformed(key: str, why: str) -> InvalidArgument:
    return InvalidArgument("this is no seccomp profile", key=key, why=why)
