# SPDX-License-Identifier: Apache-2.0
"""The agent's own settings: /etc/cleat/cleat.toml and the drop-ins of cleat.toml.d/, read like definitions."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from agent.definition import files, keys, merge, toml
from agent.definition.model import (
    Count,
    Diagnostic,
    HostPath,
    Restart,
    Size,
    Table,
    Text,
    TimeSpan,
    kind,
)
from agent.definition.parse import Problems, read_table
from agent.paths import Paths


class LogLevel(StrEnum):
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    DEBUG = "debug"


class ServiceDefaults(Table, frozen=True, kw_only=True):
    """For definitions that are silent about it; None = what the definition's own default is."""

    restart: Restart | None = None
    restart_sec: TimeSpan | None = None
    restart_max_delay_sec: TimeSpan | None = None
    restart_steps: Count | None = None
    start_limit_burst: Count | None = None
    start_limit_interval_sec: TimeSpan | None = None
    timeout_start_sec: TimeSpan | None = None
    timeout_stop_sec: TimeSpan | None = None


class Defaults(Table, frozen=True, kw_only=True):
    service: ServiceDefaults = ServiceDefaults()


class Metrics(Table, frozen=True, kw_only=True):
    listen: Annotated[str, kind("listen_address")] = ""


CONMON_PATHS = (
    "/usr/libexec/podman/conmon",
    "/usr/local/libexec/podman/conmon",
    "/usr/bin/conmon",
    "/usr/local/bin/conmon",
)
RUNTIMES: dict[str, tuple[str, ...]] = {
    "crun": ("/usr/bin/crun", "/usr/local/bin/crun"),
    "runc": ("/usr/bin/runc", "/usr/sbin/runc", "/usr/local/sbin/runc", "/usr/local/bin/runc"),
}


class AgentConfig(Table, frozen=True, kw_only=True):
    """One agent's settings."""

    conmon_path: tuple[HostPath, ...] = CONMON_PATHS
    conmon_environment: Annotated[dict[str, str], kind("environment")] = msgspec.field(default_factory=dict)
    default_runtime: Annotated[str, kind("runtime")] = "crun"
    default_slice: Annotated[str, kind("slice")] = "cleat.slice"
    log_level: LogLevel = LogLevel.INFO
    log_size_max: Size = 0
    create_timeout_sec: TimeSpan = 240.0
    parallel_starts: Annotated[int, Meta(ge=0, le=1024)] = 0
    reserve_ports: bool = True
    exit_command: tuple[Text, ...] = ()
    watch: bool = False
    runtimes: dict[str, tuple[HostPath, ...]] = msgspec.field(default_factory=lambda: dict(RUNTIMES))
    defaults: Defaults = Defaults()
    metrics: Metrics = Metrics()


# systemd.service(5): a job that ended well would start again for ever.
_NOT_FOR_ONESHOT = {Restart.ALWAYS, Restart.ON_SUCCESS}

VOCABULARY = keys.Vocabulary(AgentConfig, {})


def with_defaults(raw: Mapping[str, Any], config: AgentConfig) -> dict[str, Any]:
    """A definition's table with the settings' defaults below it; only where they differ from the built-in ones."""
    plain = AgentConfig()
    service = {
        name: _as_toml(value)
        for name in ServiceDefaults.__struct_fields__
        if (value := getattr(config.defaults.service, name)) is not None
    }
    own = _table(raw, "service")
    if own.get("type") == "oneshot" and service.get("restart") in _NOT_FOR_ONESHOT:
        del service["restart"]
    below: dict[str, Any] = {"service": service} if service else {}
    if config.default_slice != plain.default_slice:
        below["cgroup"] = {"slice": config.default_slice}
    if config.default_runtime != plain.default_runtime:
        below["runtime"] = {"name": config.default_runtime}
    if config.log_size_max and _table(raw, "log").get("driver") == "k8s-file":
        below["log"] = {"size_max": config.log_size_max}
    return merge.merge(below, raw) if below else dict(raw)


def _table(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = raw.get(key)
    return value if isinstance(value, dict) else {}


def _as_toml(value: Any) -> Any:
    """A typed value as it would be written."""
    if isinstance(value, StrEnum):
        return str(value)
    return "infinity" if isinstance(value, float) and math.isinf(value) else value


def parse_config(raw: Mapping[str, Any], problems: Problems) -> AgentConfig:
    """Settings from a raw table; keys with problems keep their defaults."""
    config = read_table(AgentConfig, raw, problems)
    return msgspec.structs.replace(config, runtimes={**RUNTIMES, **config.runtimes})


def load_config(paths: Paths) -> tuple[AgentConfig, tuple[Diagnostic, ...]]:
    """The settings in force; never raises. Keys and files with problems are left out, and reported."""
    sources: list[merge.Source] = []
    diagnostics: list[Diagnostic] = []
    for path in _config_files(paths):
        try:
            content, found = files.read(path, toml.SIZE_MAX)
            files.check_owner(path, found)
        except files.Unusable as e:
            diagnostics.append(Diagnostic(file=path, reason=e.reason, hint=e.hint))
            continue
        result = toml.read(content)
        if isinstance(result, toml.SyntaxFault):
            diagnostics.append(merge.syntax_diagnostic(path, result))
        else:
            sources.append(merge.Source(path, *result))
    problems = Problems(VOCABULARY)
    config = parse_config(merge.merge_all(source.raw for source in sources), problems)
    diagnostics += merge.diagnose(problems, sources)
    return config, tuple(diagnostics)


def _config_files(paths: Paths) -> list[str]:
    """cleat.toml and its drop-ins in name order; those in the runtime and vendor folders count too."""
    main = os.fspath(paths.agent_config)
    drop_ins: dict[str, str] = {}
    for folder in (paths.config, paths.runtime, paths.vendor):
        for entry in merge.toml_files(os.path.join(folder, "cleat.toml.d")):
            drop_ins.setdefault(os.path.basename(entry), entry)
    found = [drop_ins[name] for name in sorted(drop_ins)]
    return [main, *found] if os.path.lexists(main) else found
