# SPDX-License-Identifier: Apache-2.0
"""The `process` object: of a container's first process, and of a command executed beside it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from agent.definition.model import Container, Resources, Security
from agent.errors import InvalidArgument
from agent.oci import capabilities, image_config, mounts
from agent.oci.inputs import Identity, SpecInputs

Json = dict[str, Any]

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HOSTNAME_MAX = 64  # HOST_NAME_MAX, limits.h
_RLIM_INFINITY = (1 << 64) - 1
# The first process's own: its fds and its watchdog are not an executed command's (sd_listen_fds(3)).
_FIRST_PROCESS_ONLY = ("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "WATCHDOG_USEC", "WATCHDOG_PID")


class ExecOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `cleat exec` may ask for. `width` and `height` are of the terminal in cells, 0 = not known."""

    command: tuple[str, ...]
    working_directory: str = ""
    environment: dict[str, str] = {}
    terminal: bool = False
    capabilities_add: tuple[str, ...] = ()
    width: int = 0
    height: int = 0


def build(container: Container, inputs: SpecInputs) -> Json:
    """The container's first process. Raises InvalidArgument when there is no command."""
    merged = image_config.merge(container, inputs.image)
    init = (mounts.INIT_PATH, "--") if inputs.init_path else ()
    process: Json = {
        "terminal": container.terminal,
        "user": user(inputs.identity, container.security.umask),
        "args": [*init, *merged.args],
        "env": env_list(environment(container, inputs, merged.env)),
        "cwd": merged.working_directory,
        "capabilities": capabilities.sets(container.security, inputs.identity, inputs.host_capabilities),
        "noNewPrivileges": container.security.no_new_privileges,
    }
    return process | _limits(container.resources) | _labels(container.security, inputs)


def user(identity: Identity, umask: int | None = None) -> Json:
    value: Json = {"uid": identity.uid, "gid": identity.gid}
    if identity.additional_gids:
        value["additionalGids"] = list(identity.additional_gids)
    if umask is not None:
        value["umask"] = umask
    return value


def hostname(container: Container, inputs: SpecInputs) -> str:
    """The name in a UTS namespace of its own, and $HOSTNAME in it."""
    return inputs.hostname or container.hostname or re.sub(r"[^A-Za-z0-9._-]", "-", container.name)[:_HOSTNAME_MAX]


def environment(container: Container, inputs: SpecInputs, wanted: Mapping[str, str]) -> dict[str, str]:
    """Defaults, what image and definition ask for, and on top what the agent promises to the payload."""
    defaults = {"PATH": _PATH, "container": "cleat"}
    if container.security.uts != "host" or inputs.uts_namespace:
        defaults["HOSTNAME"] = hostname(container, inputs)
    if container.terminal:
        defaults["TERM"] = "xterm"
    if inputs.identity.home:
        defaults["HOME"] = inputs.identity.home
    return {**defaults, **wanted, **inputs.environment, **agent_environment(container.name, inputs)}


def agent_environment(name: str, inputs: SpecInputs) -> dict[str, str]:
    """The variables of sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3) and systemd's credentials."""
    promised: dict[str, str] = {}
    if inputs.listen_fds:
        names = inputs.listen_fdnames
        if names and len(names) != inputs.listen_fds:
            raise InvalidArgument(
                f"{len(names)} fd names for {inputs.listen_fds} sockets", container=name, key="socket"
            )
        promised["LISTEN_FDS"] = str(inputs.listen_fds)
        promised["LISTEN_PID"] = "1"
        if names:
            promised["LISTEN_FDNAMES"] = ":".join(names)
    if inputs.notify_socket_dir:
        promised["NOTIFY_SOCKET"] = f"{mounts.NOTIFY_FOLDER}/notify.sock"
    if inputs.watchdog_usec:
        promised["WATCHDOG_USEC"] = str(inputs.watchdog_usec)
    if inputs.credentials_dir:
        promised["CREDENTIALS_DIRECTORY"] = mounts.CREDENTIALS_FOLDER
    return promised


def needs_pid_namespace(container: Container) -> InvalidArgument:
    """The error of [[socket]] with a pid namespace that is not the container's own."""
    return InvalidArgument(
        "sockets cannot be passed to a container without a pid namespace of its own",
        container=container.name,
        key="security.pid",
        why="LISTEN_PID must be the payload's pid (sd_listen_fds(3)): known beforehand only if it is 1",
        hint="remove pid or the [[socket]] tables",
    )


def env_list(variables: Mapping[str, str]) -> list[str]:
    """As "NAME=value". Raises InvalidArgument for what execve(2) cannot carry."""
    for name, value in variables.items():
        if not name or "=" in name or "\0" in name + value:
            raise InvalidArgument(f"{name!r} is no environment variable that can be set", key="environment")
    return [f"{name}={value}" for name, value in variables.items()]


def env_dict(items: Iterable[str]) -> dict[str, str]:
    """The reverse; the last of equal names wins, as in most readers of environ(7)."""
    return {name: value for name, _, value in (item.partition("=") for item in items)}


def _limits(resources: Resources) -> Json:
    found: Json = {}
    if resources.limits:
        found["rlimits"] = [
            {"type": f"RLIMIT_{name.upper()}", "soft": _limit(soft), "hard": _limit(hard)}
            for name, (soft, hard) in sorted(resources.limits.items())
        ]
    if resources.oom_score_adjust is not None:
        found["oomScoreAdj"] = resources.oom_score_adjust
    return found


def _limit(value: int) -> int:
    return _RLIM_INFINITY if value < 0 else value


def _labels(security: Security, inputs: SpecInputs) -> Json:
    unconfined = security.privileged and not security.apparmor_profile
    found = {
        "apparmorProfile": "" if unconfined else inputs.apparmor_profile,
        "selinuxLabel": inputs.selinux_process_label,
    }
    return {key: value for key, value in found.items() if value}


def process_for_exec(process: Json, options: ExecOptions, identity: Identity | None) -> Json:
    """The process of a command executed in a container; `process` is the container's own, left as it is.

    `identity` None means the container's user. Another user than the container's starts without its
    capabilities (root: with the bounding set) and with a home of their own. What the runtime must keep up is
    kept: no new privileges, rlimits, labels. Raises InvalidArgument for an empty command or an unknown
    capability.
    """
    if not options.command:
        raise InvalidArgument("there is no command to execute", key="command", hint="name one after --")
    spec = copy.deepcopy(process)
    own = spec.get("user", {})
    spec["args"] = list(options.command)
    spec["cwd"] = options.working_directory or spec.get("cwd") or "/"
    spec["env"] = env_list(_exec_environment(spec, options, identity))
    spec["capabilities"] = _exec_capabilities(spec.get("capabilities", {}), own, options, identity)
    if identity is not None:
        spec["user"] = user(identity, own.get("umask"))
    spec["terminal"] = options.terminal
    spec.pop("consoleSize", None)
    if options.terminal and options.width > 0 and options.height > 0:
        spec["consoleSize"] = {"height": options.height, "width": options.width}
    return spec


def _exec_environment(spec: Json, options: ExecOptions, identity: Identity | None) -> dict[str, str]:
    variables = env_dict(spec.get("env", ()))
    for name in _FIRST_PROCESS_ONLY:
        variables.pop(name, None)
    if options.terminal:
        variables.setdefault("TERM", "xterm")
    if identity is not None and identity.home and identity.uid != spec.get("user", {}).get("uid", 0):
        variables["HOME"] = identity.home
    return variables | options.environment


def _exec_capabilities(own_sets: Json, own: Json, options: ExecOptions, identity: Identity | None) -> Json:
    added = capabilities.normalise(options.capabilities_add, "capabilities_add")
    uid = own.get("uid", 0) if identity is None else identity.uid
    bounding = set(own_sets.get("bounding", ())) | (added - {"ALL"})
    if "ALL" in added:
        added = bounding = set(capabilities.KNOWN)
    if uid == 0:
        return capabilities.as_oci(bounding, bounding, ())
    same_user = uid == own.get("uid", 0)
    inherited = set(own_sets.get("ambient", ())) if same_user else set()
    # Without root, only ambient capabilities outlive execve(2): what was asked for by name must be put
    # there.
    held = inherited | added
    return capabilities.as_oci(bounding, held, held)
