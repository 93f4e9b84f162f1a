# SPDX-License-Identifier: Apache-2.0
"""What to say of a key that is not known: the nearest one, the table it belongs in, its name here; pure."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from agent.definition import limits, resources
from agent.definition.model import Container, Resources, Table
from agent.definition.values import nearest, shown

KeyPath = tuple[str | int, ...]
_LOADER_KEYS = {"name", "source"}

RESOURCE_KEYS = (*resources.ROWS, "oom_score_adjust", *(f"limit_{name}" for name in limits.LIMITS))

# What other tools call it: compose, Quadlet, docker run, systemd.service(5).
_ELSEWHERE: Mapping[str, str] = {
    "cap_add": "security.capabilities_add",
    "add_capability": "security.capabilities_add",
    "cap_drop": "security.capabilities_drop",
    "drop_capability": "security.capabilities_drop",
    "capabilities": "security.capabilities_add",
    "add_device": "security.devices",
    "add_host": "network.hosts",
    "extra_hosts": "network.hosts",
    "args": "command",
    "cmd": "command",
    "cpus": "resources.cpu_quota",
    "depends_on": "requires",
    "enabled": "autostart",
    "env": "environment",
    "env_file": "environment_files",
    "environment_file": "environment_files",
    "exec": "command",
    "exec_start": "command",
    "exec_reload": "service.reload_command",
    "file_descriptor_name": "socket.name",
    "group_add": "groups",
    "health_cmd": "health.command",
    "healthcheck": "health",
    "load_credential": "credential",
    "logging": "log",
    "mem_limit": "resources.memory_max",
    "memory": "resources.memory_max",
    "memory_limit": "resources.memory_max",
    "mounts": "mount",
    "nofile": "resources.limit_nofile",
    "pids_limit": "resources.tasks_max",
    "ports": "network.publish",
    "publish_port": "network.publish",
    "readonly": "security.read_only",
    "run_init": "init",
    "secrets": "credential",
    "secret": "credential",
    "sockets": "socket",
    "stop_signal": "service.kill_signal",
    "stop_timeout": "service.timeout_stop_sec",
    "stop_grace_period": "service.timeout_stop_sec",
    "sysctl": "security.sysctls",
    "tmpfs": "mount",
    "tty": "terminal",
    "ulimits": "resources.limit_nofile",
    "userns": "security.user_namespace",
    "user_ns": "security.user_namespace",
    "volume": "mount",
    "volumes": "mount",
    "workdir": "working_directory",
    "working_dir": "working_directory",
}


class Vocabulary:
    """All keys below one struct, by table; the table "" is the top."""

    def __init__(self, root: type[Table], foreign: Mapping[str, str]) -> None:
        hints = {name: hint for name, hint in typing.get_type_hints(root).items() if name not in _LOADER_KEYS}
        structs = {name: kind for name, hint in hints.items() if (kind := _struct_of(hint)) is not None}
        self.tables = {name: _keys_of(kind) for name, kind in structs.items()} | {"": tuple(hints)}
        self._lists = frozenset(name for name in structs if typing.get_args(hints[name]))
        self._foreign = foreign

    def meant(self, key: str, path: KeyPath, known: Iterable[str]) -> tuple[str, str]:
        """What to say of an unknown key, and the full key that was probably meant."""
        if not path and self._foreign and key in {"name", "container_name"}:
            return "a container is named by its file, NAME.toml", ""
        table = ".".join(part for part in path if isinstance(part, str))
        meant = self._nearest(to_snake(key), table, tuple(known))
        return (f"did you mean {self._as_written(meant, table)}?", meant) if meant else ("", "")

    def _nearest(self, key: str, table: str, known: tuple[str, ...]) -> str:
        prefix = f"{table}." if table else ""
        if key in known:
            return prefix + key
        # Tables with a shorter name come first: "name" is more likely a socket's than a credential's.
        for place in sorted((name for name, names in self.tables.items() if key in names), key=len):
            return f"{place}.{key}".removeprefix(".")
        if key in self._foreign:
            return self._foreign[key]
        found = nearest(key, known)
        return prefix + found if found else ""

    def _as_written(self, meant: str, table: str) -> str:
        place, _, key = meant.rpartition(".")
        if not place and key in self.tables:
            return self._header(key)
        if place == table:
            return shown(key)
        return f"{shown(key)} in {self._header(place)}" if place else f"{shown(key)}, above all tables"

    def _header(self, table: str) -> str:
        return f"[[{table}]]" if table in self._lists else f"[{table}]"


def to_snake(key: str) -> str:
    """A systemd or Quadlet directive in snake case: "CPUQuota" is cpu_quota, "memory-max" memory_max."""
    text = re.sub(
        r"([a-z0-9])([A-Z])|([A-Z]+)([A-Z][a-z])",
        lambda m: f"{m[1] or m[3]}_{m[2] or m[4]}",
        key[:100].replace("CPUs", "Cpus"),
    )
    return text.replace("-", "_").replace(" ", "_").lower()


def _keys_of(kind: type[Table]) -> tuple[str, ...]:
    return RESOURCE_KEYS if kind is Resources else kind.__struct_fields__


def _struct_of(hint: Any) -> type[Table] | None:
    for kind in (hint, *typing.get_args(hint)):
        if isinstance(kind, type) and issubclass(kind, Table):
            return kind
    return None


DEFINITION = Vocabulary(Container, _ELSEWHERE)
