# SPDX-License-Identifier: Apache-2.0
"""Capabilities by name (capabilities(7)): podman's defaults, what is added and dropped, the five sets."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from agent.definition.model import Security
from agent.errors import InvalidArgument
from agent.oci.inputs import Identity

# In the kernel's order (linux/capability.h), so that the index is the bit.
KNOWN = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
        "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
        "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
        "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
        "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
        "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
    )
)  # fmt: skip

# containers.conf(5), default_capabilities.
DEFAULT = frozenset(
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP", "SETGID",
        "SETPCAP", "SETUID", "SYS_CHROOT",
    )
)  # fmt: skip

_ALL = "ALL"


def normalise(names: Iterable[str], key: str) -> set[str]:
    """Full names of "net_admin", "CAP_NET_ADMIN", "ALL". Raises InvalidArgument with the nearest name."""
    return {_normalise(name, key) for name in names}


def _normalise(name: str, key: str) -> str:
    upper = name.upper()
    full = upper if upper == _ALL or upper.startswith("CAP_") else f"CAP_{upper}"
    if full == _ALL or full in KNOWN:
        return full
    near = difflib.get_close_matches(full, KNOWN, 1)
    hint = f"did you mean {near[0]}?" if near else "capabilities(7) has the names"
    raise InvalidArgument(f"unknown capability {name!r}", key=key, hint=hint)


def effective_bounding(security: Security, available: frozenset[str] | None) -> frozenset[str]:
    """The bounding set: podman's defaults (all of `available` when privileged), plus added, minus dropped.

    Dropping ALL leaves what is added by name. Raises InvalidArgument for one both added and dropped, or not available.
    """
    everything = frozenset(KNOWN) if available is None else available & frozenset(KNOWN)
    added = normalise(security.capabilities_add, "security.capabilities_add")
    dropped = normalise(security.capabilities_drop, "security.capabilities_drop")
    ambient = normalise(security.ambient_capabilities, "security.ambient_capabilities")
    if both := added & dropped:
        raise InvalidArgument(
            f"{min(both)} is both added and dropped",
            key="security.capabilities_add",
            hint="name it in one list",
        )
    if missing := (added | ambient) - {_ALL} - everything:
        raise InvalidArgument(
            f"{min(missing)} cannot be given to a container",
            key="security.capabilities_add",
            why="the agent does not have it itself",
            hint="see CapabilityBoundingSet= in cleat-executor.service",
        )
    base = everything if security.privileged or _ALL in added else DEFAULT
    kept = frozenset() if _ALL in dropped else base - dropped
    return kept | (added - {_ALL}) | (everything if _ALL in ambient else ambient)


def sets(security: Security, identity: Identity, available: frozenset[str] | None = None) -> dict[str, list[str]]:
    """The five sets of `process.capabilities`.

    Root has the bounding set; anybody else holds only what was added by name, and, as execve(2) drops that,
    keeps only what `ambient_capabilities` asks for. Inheritable and ambient stay empty but for that
    (CVE-2022-27649).
    """
    bounding = effective_bounding(security, available)
    ambient = normalise(security.ambient_capabilities, "security.ambient_capabilities")
    if _ALL in ambient:
        ambient = set(bounding)
    added = normalise(security.capabilities_add, "security.capabilities_add")
    held = bounding if identity.uid == 0 or _ALL in added else (bounding & added) | ambient
    return as_oci(bounding, held, ambient)


def as_oci(bounding: Iterable[str], held: Iterable[str], ambient: Iterable[str]) -> dict[str, list[str]]:
    """`held` is permitted and effective; ambient needs the same inheritable (capabilities(7))."""
    return {
        "bounding": sorted(bounding),
        "effective": sorted(held),
        "inheritable": sorted(ambient),
        "permitted": sorted(held),
        "ambient": sorted(ambient),
    }


def from_mask(mask: int) -> frozenset[str]:
    """The capabilities of a bit mask as in proc_pid_status(5)."""
    return frozenset(name for bit, name in enumerate(KNOWN) if mask >> bit & 1)
