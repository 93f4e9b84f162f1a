# SPDX-License-Identifier: Apache-2.0
"""Kernel parameters of a container: only those of its own namespaces (sysctl(8), namespaces(7)).

Everything else is the host's; setting it through a container is how CVE-2022-0811 became a way out.
"""

from __future__ import annotations

import re

from agent.definition.model import Container
from agent.errors import InvalidArgument
from agent.oci.inputs import SpecInputs

_NAME = re.compile(r"[a-z0-9_]+(\.[A-Za-z0-9_-]+)+")
_IPC = {
    "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
    "kernel.shmmni", "kernel.shm_rmid_forced",
}  # fmt: skip
_UTS = {"kernel.domainname"}

# Lets the payload's own groups ping without CAP_NET_RAW, as podman's default_sysctls.
_DEFAULT = {"net.ipv4.ping_group_range": "0 0"}


def build(container: Container, inputs: SpecInputs) -> dict[str, str]:
    """`linux.sysctl`. Raises InvalidArgument for a parameter of the host."""
    for name, value in container.security.sysctls.items():
        _check(name, value, container, inputs)
    defaults = _DEFAULT if _has_network(container, inputs) else {}
    return {**defaults, **container.security.sysctls}


def _check(name: str, value: str, container: Container, inputs: SpecInputs) -> None:
    if not _NAME.fullmatch(name) or not value.isprintable():
        raise _refused(name, container, 'not the form name = "value" of sysctl(8)', "write it with dots")
    if name.startswith("net."):
        fine, namespace = _has_network(container, inputs), "network"
    elif name in _IPC or name.startswith("fs.mqueue."):
        fine, namespace = container.security.ipc != "host" or bool(inputs.ipc_namespace), "ipc"
    elif name in _UTS:
        fine, namespace = container.security.uts != "host" or bool(inputs.uts_namespace), "uts"
    else:
        raise _refused(name, container, "it is the whole host's", "set it in /etc/sysctl.d")
    if not fine:
        raise _refused(name, container, f"the container has the host's {namespace} namespace", "set it there")


def _has_network(container: Container, inputs: SpecInputs) -> bool:
    return container.network.mode != "host" or bool(inputs.network_namespace)


def _refused(name: str, container: Container, why: str, hint: str) -> InvalidArgument:
    return InvalidArgument(
        f"{name!r} cannot be set for a container",
        container=container.name,
        key="security.sysctls",
        why=why,
        hint=hint,
    )
