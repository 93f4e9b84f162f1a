# SPDX-License-Identifier: Apache-2.0
"""What a runtime spec is made from besides the definition: ids, paths, the host's answers, all resolved.

Everything here is a value: users, devices, seccomp profile and namespaces have been looked up before.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agent.oci.image_config import ImageConfig


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who the payload runs as, in the container's own ids; `home` is "" where its passwd has no entry."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()
    home: str = ""


class IdMapping(msgspec.Struct, frozen=True):
    """A line of user_namespaces(7) uid_map: `size` ids from `container_id` are `host_id` and up outside."""

    container_id: int
    host_id: int
    size: int

    def as_oci(self) -> dict[str, int]:
        return {"containerID": self.container_id, "hostID": self.host_id, "size": self.size}


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device node of the host as the payload shall see it; `type` is c, b or p, `access` is of "rwm"."""

    path: str
    type: str
    major: int
    minor: int
    mode: int = 0o666
    uid: int = 0
    gid: int = 0
    access: str = "rwm"
    source: str = ""


class SpecInputs(msgspec.Struct, frozen=True, kw_only=True):
    """The rest of a spec. "" is "none" or "as the definition says" for every path and label.

    A namespace path means joining that namespace, whatever mode the definition has. `listen_fdnames` is as
    long as `listen_fds`, or empty. `notify_socket_dir` is a host folder that holds notify.sock.
    `masked_paths` are the host's own additions to what is hidden by default. `host_capabilities` bounds what
    "ALL" and `privileged` mean (None = all that are known).
    """

    container_id: str
    root_path: str
    root_readonly: bool = False
    cgroups_path: str = ""
    cgroup_namespace: bool = True
    identity: Identity = Identity()
    seccomp: dict[str, Any] | None = None
    image: ImageConfig | None = None
    listen_fds: int = 0
    listen_fdnames: tuple[str, ...] = ()
    notify_socket_dir: str = ""
    watchdog_usec: int = 0
    credentials_dir: str = ""
    extra_mounts: tuple[dict[str, Any], ...] = ()
    devices: tuple[Device, ...] = ()
    masked_paths: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    apparmor_profile: str = ""
    selinux_process_label: str = ""
    selinux_mount_label: str = ""
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    user_namespace: str = ""
    network_namespace: str = ""
    ipc_namespace: str = ""
    pid_namespace: str = ""
    uts_namespace: str = ""
    hostname: str = ""
    localtime: str = ""
    init_path: str = ""
    host_capabilities: frozenset[str] | None = None
    rootless: bool = False

    @property
    def has_user_namespace(self) -> bool:
        return bool(self.uid_mappings or self.user_namespace)
