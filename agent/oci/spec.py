# SPDX-License-Identifier: Apache-2.0
"""The runtime spec of a container (OCI runtime-spec 1.0.2, config.md, config-linux.md): values to a value.

Each step makes one part of the object; defaults are podman's or stricter. Nothing is shared between two results.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

import msgspec

from agent.definition.model import CgroupMode, Container
from agent.errors import InvalidArgument
from agent.oci import mounts, process, sysctls
from agent.oci.annotations import dropped_annotations, kept_annotations
from agent.oci.bundle import from_bundle
from agent.oci.inputs import Device, Identity, IdMapping, SpecInputs
from agent.oci.process import ExecOptions, process_for_exec

__all__ = [
    "Device", "ExecOptions", "IdMapping", "Identity", "SpecInputs", "build", "dropped_annotations",
    "from_bundle", "process_for_exec",
]  # fmt: skip

Json = dict[str, Any]

VERSION = "1.0.2"

_MASKED = (
    "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
    "/sys/devices/virtual/powercap", "/sys/firmware", "/sys/fs/selinux",
)  # fmt: skip
_READ_ONLY = ("/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# config-linux.md, default devices: null, zero, full, random, urandom, tty, ptmx; and what lies in /dev/pts.
_DEFAULT_DEVICES = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, None))


def build(container: Container, inputs: SpecInputs) -> Json:
    """config.json of a container from an image or a root filesystem.

    Raises InvalidArgument when there is no command, or a key asks for what a container cannot have.
    Annotations that runtimes act on are left out: `dropped_annotations` names them, so that somebody can say
    so.
    """
    _check_sockets(container, inputs)
    parts: tuple[Json, ...] = (
        {"ociVersion": VERSION, "process": process.build(container, inputs)},
        _root(container, inputs),
        _hostname(container, inputs),
        {"mounts": mounts.build(container, inputs)},
        _annotations(container.annotations),
    )
    spec = {key: value for part in parts for key, value in part.items()}
    spec["linux"] = _linux(container, inputs, spec["mounts"])
    # A copy: nobody who changes it may change what another container gets (CVE-2020-14370).
    copied: Json = msgspec.to_builtins(spec)
    return copied


def _check_sockets(container: Container, inputs: SpecInputs) -> None:
    if inputs.listen_fds and (inputs.pid_namespace or container.security.pid != "private"):
        raise process.needs_pid_namespace(container)


def _root(container: Container, inputs: SpecInputs) -> Json:
    read_only = inputs.root_readonly or container.security.read_only
    return {"root": {"path": inputs.root_path, "readonly": read_only}}


def _hostname(container: Container, inputs: SpecInputs) -> Json:
    is_private = container.security.uts == "private" and not inputs.uts_namespace
    return {"hostname": process.hostname(container, inputs)} if is_private else {}


def _annotations(wanted: Mapping[str, str]) -> Json:
    kept = kept_annotations(wanted)
    return {"annotations": kept} if kept else {}


def _linux(container: Container, inputs: SpecInputs, all_mounts: list[mounts.Mount]) -> Json:
    parts = (
        {"namespaces": _namespaces(container, inputs)},
        _mappings(inputs),
        _cgroups_path(inputs),
        _devices(container, inputs),
        _resources(container, inputs),
        _hidden_paths(container, inputs),
        _seccomp(container, inputs),
        {"mountLabel": inputs.selinux_mount_label},
        {"sysctl": sysctls.build(container, inputs)},
        {"rootfsPropagation": mounts.root_propagation(all_mounts)},
    )
    return {key: value for part in parts for key, value in part.items() if value}


def _namespaces(container: Container, inputs: SpecInputs) -> list[Json]:
    security = container.security
    wanted = (
        ("pid", security.pid, inputs.pid_namespace),
        ("network", container.network.mode, inputs.network_namespace),
        ("ipc", security.ipc, inputs.ipc_namespace),
        ("uts", security.uts, inputs.uts_namespace),
        ("mount", "private", ""),
        ("cgroup", "private" if inputs.cgroup_namespace else "host", ""),
        ("user", "private" if inputs.has_user_namespace else "host", inputs.user_namespace),
    )
    return [_namespace(kind, mode, path, container) for kind, mode, path in wanted if path or mode != "host"]


def _namespace(kind: str, mode: str, path: str, container: Container) -> Json:
    if path:
        return {"type": kind, "path": path}
    if mode.startswith(("container:", "ns:")):
        # Never a namespace of its own instead: the definition asked for somebody else's.
        raise InvalidArgument(f"the {kind} namespace of {mode} was not found", container=container.name)
    return {"type": kind}


def _mappings(inputs: SpecInputs) -> Json:
    if inputs.user_namespace:
        return {}
    return {
        "uidMappings": [m.as_oci() for m in inputs.uid_mappings],
        "gidMappings": [m.as_oci() for m in inputs.gid_mappings],
    }


def _cgroups_path(inputs: SpecInputs) -> Json:
    return {"cgroupsPath": inputs.cgroups_path} if inputs.cgroups_path else {}


def _devices(container: Container, inputs: SpecInputs) -> Json:
    # Without root outside, no node can be made: those are bind mounts.
    if inputs.rootless:
        return {}
    return {"devices": [_device(device) for device in inputs.devices]}


def _device(device: Device) -> Json:
    return {
        "path": device.path,
        "type": device.type,
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.mode,
        "uid": device.uid,
        "gid": device.gid,
    }


def _resources(container: Container, inputs: SpecInputs) -> Json:
    """Device rules only: limits are the scope's, set by systemd. The first rule denies, later ones allow."""
    if inputs.rootless or container.cgroup.mode is CgroupMode.DISABLED:
        return {}
    if container.security.privileged:
        return {"resources": {"devices": [{"allow": True, "access": "rwm"}]}}
    rules: list[Json] = [{"allow": False, "access": "rwm"}]
    rules += [_rule("c", major, minor, "rwm") for major, minor in _DEFAULT_DEVICES]
    rules += [_rule(d.type, d.major, d.minor, d.access) for d in inputs.devices if d.type in {"b", "c"}]
    return {"resources": {"devices": rules}}


def _rule(kind: str, major: int, minor: int | None, access: str) -> Json:
    rule: Json = {"allow": True, "type": kind, "major": major, "access": access}
    return rule if minor is None else {**rule, "minor": minor}


def _hidden_paths(container: Container, inputs: SpecInputs) -> Json:
    security = container.security
    given = {"maskedPaths": list(security.masked_paths), "readonlyPaths": list(security.read_only_paths)}
    if security.privileged or "ALL" in {path.upper() for path in security.unmasked_paths}:
        return given
    # The host's /sys comes with what is mounted in it: debugfs, tracefs, securityfs.
    shared = ("/sys/kernel",) if mounts.shares_sysfs(container, inputs) else ()
    masked = (*_MASKED, *shared, *inputs.masked_paths)
    return {
        "maskedPaths": _joined(_still_hidden(masked, security.unmasked_paths), security.masked_paths),
        "readonlyPaths": _joined(_still_hidden(_READ_ONLY, security.unmasked_paths), security.read_only_paths),
    }


def _still_hidden(paths: Iterable[str], shown: Iterable[str]) -> list[str]:
    """Without those that a pattern of podman-run(1), --security-opt unmask=, matches."""
    patterns = [pattern for pattern in shown if pattern]
    return [path for path in paths if not any(PurePosixPath(path).match(pattern) for pattern in patterns)]


def _joined(first: Iterable[str], second: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*first, *second]))


def _seccomp(container: Container, inputs: SpecInputs) -> Json:
    security = container.security
    is_default = security.seccomp_profile in {"", "default"}
    return {} if security.privileged and is_default else {"seccomp": inputs.seccomp}
