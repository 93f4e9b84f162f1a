# SPDX-License-Identifier: Apache-2.0
"""What AppArmor and SELinux shall know a container by. A host without them gives empty labels.

SELinux: containers differ in their pair of categories (MCS), so one cannot touch the files of another. The contexts are
those that the policy has for containers (container_selinux(8), the file lxc_contexts).
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Collection
from pathlib import Path

import msgspec

from agent.definition.model import Container
from agent.errors import Unsupported

_PROFILES = Path("/sys/kernel/security/apparmor/profiles")
_DEFAULT_PROFILES = "containers-default-"
_SELINUX_FS = Path("/sys/fs/selinux/enforce")
_SELINUX_CONFIG = Path("/etc/selinux")
_CATEGORIES = 1024
_TRIES = 10_000

Pair = tuple[int, int]


class Contexts(msgspec.Struct, frozen=True):
    """Contexts "user:role:type:level" of a container's processes and of the files that it may write."""

    process: str = "system_u:system_r:container_t:s0"
    file: str = "system_u:object_r:container_file_t:s0"


class Labels(msgspec.Struct, frozen=True, kw_only=True):
    """ "" = none."""

    apparmor: str = ""
    process: str = ""
    mount: str = ""


def apparmor(container: Container, profiles: Path = _PROFILES) -> str:
    """The profile to run under: the definition's, else the loaded default of containers-common, else none.

    Raises Unsupported when a profile is asked for that is not loaded: nothing runs with less than it was given.
    """
    wanted = container.security.apparmor_profile
    loaded = _loaded(profiles)
    if wanted == "unconfined" and not loaded:
        return ""
    if wanted and wanted != "unconfined" and wanted not in loaded:
        raise Unsupported(
            f"the AppArmor profile {wanted} is not loaded" if loaded else "AppArmor is not enabled on this host",
            container=container.name,
            key="security.apparmor_profile",
            hint="load it with apparmor_parser -r, or remove the key" if loaded else "remove the key",
        )
    if wanted or container.security.privileged:
        return wanted
    return max((name for name in loaded if name.startswith(_DEFAULT_PROFILES)), key=_version, default="")


def _loaded(profiles: Path) -> frozenset[str]:
    """Lines are "NAME (MODE)", and names may hold blanks."""
    try:
        lines = profiles.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(line.rpartition(" (")[0] or line for line in lines)


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(number[:9]) for number in re.findall(r"\d+", name))


def selinux_is_enabled() -> bool:
    return _SELINUX_FS.exists()


def selinux_contexts(folder: Path = _SELINUX_CONFIG) -> Contexts:
    """The installed policy's own, where it has them."""
    policy = _settings(folder / "config").get("SELINUXTYPE", "targeted")
    found = _settings(folder / os.path.basename(policy) / "contexts" / "lxc_contexts")
    default = Contexts()
    return Contexts(found.get("process", default.process), found.get("file", default.file))


def _settings(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=")[::2] for line in lines if not line.lstrip().startswith("#"))
    return {key.strip(): value.strip().strip('"') for key, value in pairs if value.strip()}


def need_selinux(container: Container, *, enabled: bool) -> bool:
    """Whether the container gets labels. Raises Unsupported for one that asks for them where there are none."""
    security = container.security
    asked = security.selinux_type or security.selinux_level
    if asked and not enabled:
        raise Unsupported(
            "SELinux is not enabled on this host",
            container=container.name,
            key="security.selinux_type" if security.selinux_type else "security.selinux_level",
            hint="remove the key",
        )
    return enabled and (bool(asked) or not security.privileged)


def selinux(container: Container, contexts: Contexts, pair: Pair) -> tuple[str, str]:
    """(label of its processes, label of its files)."""
    security = container.security
    level = security.selinux_level or f"s0:c{pair[0]},c{pair[1]}"
    user, role, kind, *_ = contexts.process.split(":")
    file_user, file_role, file_kind, *_ = contexts.file.split(":")
    process = f"{user}:{role}:{security.selinux_type or kind}:{level}"
    return process, f"{file_user}:{file_role}:{file_kind}:{level}"


def for_all(label: str) -> str:
    """The label without its categories: every container may use what has it."""
    return ":".join(label.split(":")[:4])


def free_pair(used: Collection[Pair], randomness: random.Random | None = None) -> Pair:
    """Two different categories, in order, that no other container has. Raises Unsupported when none is found."""
    source = randomness or random.SystemRandom()
    for _ in range(_TRIES):
        first, second = sorted(source.sample(range(_CATEGORIES), 2))
        if (first, second) not in used:
            return first, second
    raise Unsupported("there are no free SELinux categories", hint="set security.selinux_level")
