# SPDX-License-Identifier: Apache-2.0
"""Bundles that come with a config.json of their own: what of it stays, and what is ours."""

from __future__ import annotations

from typing import Any

import msgspec

from agent.definition.model import Container
from agent.errors import InvalidArgument
from agent.oci import mounts, process
from agent.oci.annotations import kept_annotations
from agent.oci.inputs import SpecInputs

Json = dict[str, Any]


class _Process(msgspec.Struct):
    args: list[str]
    env: list[str] | None = None


class _Root(msgspec.Struct):
    path: str


class _Mount(msgspec.Struct):
    destination: str
    type: str = ""
    source: str = ""
    options: list[str] | None = None

    @property
    def is_bind(self) -> bool:
        return self.type == "bind" or bool({"bind", "rbind"} & set(self.options or ()))


class _Namespace(msgspec.Struct):
    type: str
    path: str = ""


class _Linux(msgspec.Struct):
    namespaces: list[_Namespace]


class _Config(msgspec.Struct):
    """The parts of config.json that are read here; the rest passes through untouched."""

    process: _Process
    root: _Root
    linux: _Linux
    mounts: list[_Mount] | None = None
    annotations: dict[str, str] | None = None


def from_bundle(config: Json, container: Container, inputs: SpecInputs) -> Json:
    """The bundle's own config.json, made ours: cgroup, root path, sockets, notify socket, credentials, environment.

    `config` is left as it is. Annotations are filtered as in `spec.build`. Hooks are kept, and run as root on the
    host: who may write the bundle may do as much as who may write the definition, so the loader must have checked that
    root owns it. Bind sources relative to the bundle are made absolute, since config.json moves. The bundle decides
    about a terminal; read it from the result. Raises InvalidArgument when config.json is not of the expected form.
    """
    checked = _checked(config, container)
    if inputs.listen_fds and not any(ns.type == "pid" and not ns.path for ns in checked.linux.namespaces):
        raise process.needs_pid_namespace(container)
    spec: Json = msgspec.to_builtins(config)
    spec["process"]["env"] = _environment(checked, container, inputs)
    spec["root"]["path"] = inputs.root_path
    spec["mounts"] = _mounts(spec, checked, container, inputs)
    spec["annotations"] = kept_annotations({**(checked.annotations or {}), **container.annotations})
    spec["linux"].pop("cgroupsPath", None)
    if inputs.cgroups_path:
        spec["linux"]["cgroupsPath"] = inputs.cgroups_path
    return spec


def _checked(config: Json, container: Container) -> _Config:
    try:
        checked = msgspec.convert(config, _Config)
    except msgspec.ValidationError as e:
        raise _malformed("", container, str(e)) from e
    if not checked.linux.namespaces:
        raise _malformed("linux.namespaces", container, "there are none: that would run on the host itself")
    if not checked.process.args:
        raise _malformed("process.args", container, "there is no command to run")
    return checked


def _environment(checked: _Config, container: Container, inputs: SpecInputs) -> list[str]:
    own = process.env_dict(checked.process.env or ())
    promised = process.agent_environment(container.name, inputs)
    return process.env_list({**own, **container.environment, **inputs.environment, **promised})


def _mounts(spec: Json, checked: _Config, container: Container, inputs: SpecInputs) -> list[Json]:
    theirs = list(spec.get("mounts") or ())
    for one, read in zip(theirs, checked.mounts or (), strict=True):
        if read.is_bind and not read.source.startswith("/"):
            one["source"] = f"{container.bundle}/{read.source}"
    extra: list[Json] = msgspec.to_builtins(inputs.extra_mounts)
    return [*theirs, *extra, *mounts.ours(inputs)]


def _malformed(key: str, container: Container, why: str) -> InvalidArgument:
    return InvalidArgument(
        "this is no config.json that can be run",
        container=container.name,
        file=f"{container.bundle}/config.json",
        key=key,
        why=why,
        hint="compare it with what `crun spec` or `runc spec` writes",
    )
