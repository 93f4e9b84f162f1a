# SPDX-License-Identifier: Apache-2.0
"""What the host must have for a definition: the second step, after its form. stat(2) and small files only, no tools."""

from __future__ import annotations

import functools
import grp
import json
import os
import pwd
import stat
from collections.abc import Callable, Iterable, Iterator

from agent.definition import files, resources
from agent.definition.agent_config import AgentConfig
from agent.definition.merge import has
from agent.definition.model import Container, Definition, Diagnostic, MountType, Refused, UpdateMode
from agent.definition.parse import KeyPath, Problem, show_path
from agent.definition.position import Position, locate
from agent.definition.toml import SIZE_MAX
from agent.definition.values import shown

CONFIG_JSON_MAX = 16 << 20
SECCOMP_PROFILES = ("/etc/containers/seccomp.json", "/usr/share/containers/seccomp.json")
_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_CONTROLLERS = "cgroup.controllers"

Locate = Callable[[KeyPath], tuple[str, Position]]
HostCheck = Callable[[Container, AgentConfig], Iterator[Problem]]


def check(definition: Definition, config: AgentConfig, locate: Locate | None = None) -> tuple[Diagnostic, ...]:
    """All that this host lacks for the definition. `locate` finds the file and place of a key, for drop-ins."""
    return _diagnose(_problems(definition, config), definition.container, locate)


def check_refused(refused: Refused, config: AgentConfig, locate: Locate | None = None) -> tuple[Diagnostic, ...]:
    """The same for those keys of a refused definition that could be read: all that is wrong is said at once."""
    raw = refused.definition.raw
    sound = (
        problem
        for problem in _problems(refused.definition, config)
        if has(raw, problem.path) and not any(_depends(problem.path, fault) for fault in refused.faults)
    )
    return _diagnose(sound, refused.definition.container, locate)


def _problems(definition: Definition, config: AgentConfig) -> Iterator[Problem]:
    for host_check in CHECKS:
        yield from host_check(definition.container, config)


def _depends(path: KeyPath, fault: KeyPath) -> bool:
    """Whether a fault says something of what is at `path`. An element that could not be read is missing in its array,
    so that those behind it have other numbers.
    """
    for i, (mine, other) in enumerate(zip(path, fault, strict=False)):
        if mine != other:
            return isinstance(mine, int) and isinstance(other, int) and i + 1 == len(fault)
    return True


def _diagnose(problems: Iterable[Problem], container: Container, locate: Locate | None) -> tuple[Diagnostic, ...]:
    find = locate or functools.partial(_locate_in_source, container.source)
    found = []
    for problem in problems:
        file, position = find(problem.path)
        found.append(
            Diagnostic(
                file=file,
                line=position.line,
                column=position.column,
                key=show_path(problem.path),
                reason=problem.reason,
                hint=problem.hint,
                container=container.name,
                warning=problem.warning,
            )
        )
    return tuple(found)


def _locate_in_source(source: str, path: KeyPath) -> tuple[str, Position]:
    try:
        content, _ = files.read(source, SIZE_MAX)
    except files.Unusable:
        return source, Position()
    return source, locate(content.decode(errors="replace"), path)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _is_folder(path: str) -> bool:
    found = _stat(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


# What this version does not do yet: said before the start, not found out afterwards


def _not_yet(container: Container, config: AgentConfig) -> Iterator[Problem]:
    if container.network.mode == "bridge":
        hint = 'use "host", "private", "container:NAME" or "ns:/PATH"'
        yield Problem(("network", "mode"), "this version makes no bridge networks", hint)
    if container.update.mode is not UpdateMode.OFF:
        hint = "cleat pull fetches a newer image, cleat restart runs it"
        yield Problem(("update", "mode"), "this version makes no updates by itself", hint)


# What is run


def _root(container: Container, config: AgentConfig) -> Iterator[Problem]:
    for key, path in (("rootfs", container.rootfs), ("bundle", container.bundle)):
        if path and _stat(path) is None:
            yield Problem((key,), f"{path} does not exist", "create it, or correct the path")
        elif path and not _is_folder(path):
            yield Problem((key,), f"{path} is not a folder")
    kind, _, path = container.image.partition(":")
    if kind in {"oci", "oci-archive", "docker-archive", "dir"}:
        yield from _local_image(path)


def _local_image(path: str) -> Iterator[Problem]:
    """PATH or PATH:REFERENCE (containers-transports(5))."""
    if _stat(path) is None and _stat(path.partition(":")[0]) is None:
        yield Problem(("image",), f"{path.partition(':')[0]} does not exist", "create it, or correct the path")


def _bundle(container: Container, config: AgentConfig) -> Iterator[Problem]:
    """Its hooks run as root, so that nobody else may be able to change it."""
    if not container.bundle or not _is_folder(container.bundle):
        return
    path = os.path.join(container.bundle, "config.json")
    try:
        files.check_owner(container.bundle, os.stat(container.bundle))
        content, found = files.read(path, CONFIG_JSON_MAX)
        files.check_owner(path, found)
        spec = json.loads(content)
    except files.Unusable as e:
        yield Problem(("bundle",), f"{path} {e.reason}", e.hint)
    except (OSError, ValueError, RecursionError) as e:
        yield Problem(("bundle",), f"{path} is no JSON: {e}", "make it with the runtime's spec command")
    else:
        if not isinstance(spec, dict) or not isinstance(spec.get("ociVersion"), str):
            yield Problem(("bundle",), f"{path} has no ociVersion", "make it with the runtime's spec command")


def _tools(container: Container, config: AgentConfig) -> Iterator[Problem]:
    name = container.runtime.name
    if not find_runtime(name, config):
        hint = f"install {os.path.basename(name)}, or name its path in [runtimes] of cleat.toml"
        yield Problem(("runtime", "name"), f"the runtime {shown(name)} is not installed", hint)
    if not any(_is_program(path) for path in config.conmon_path):
        places = ", ".join(config.conmon_path)
        yield Problem(
            (), f"conmon is not installed: looked at {places}", "install conmon, or set conmon_path in cleat.toml"
        )


def find_runtime(name: str, config: AgentConfig) -> str:
    """The path of a runtime's binary: what cleat.toml names, else one on the usual PATH; "" where there is none."""
    if name.startswith("/"):
        return name if _is_program(name) else ""
    candidates = [*config.runtimes.get(name, ()), *(f"{folder}/{name}" for folder in _PATH)]
    return next((path for path in candidates if _is_program(path)), "")


def _is_program(path: str) -> bool:
    found = _stat(path)
    return found is not None and stat.S_ISREG(found.st_mode) and bool(found.st_mode & 0o111)


# Limits


def _controllers(container: Container, config: AgentConfig) -> Iterator[Problem]:
    """A limit that the kernel cannot enforce must not look as if it did."""
    needed = resources.needed_controllers(container.resources)
    if not needed:
        return
    available = available_controllers()
    for key in container.resources.properties:
        controller = resources.ROWS[key].controller
        if controller and controller not in available:
            hint = f"remove the limit, or boot the host with cgroup_enable={controller}"
            yield Problem(("resources", key), f"this host has no cgroup controller {controller}", hint)


def available_controllers(root: str = "/sys/fs/cgroup") -> frozenset[str]:
    """Those of the host; below a user's manager, those that were delegated to it."""
    folder = root
    if os.geteuid() != 0:
        folder = f"{root}/user.slice/user-{os.getuid()}.slice/user@{os.getuid()}.service"
    try:
        with open(f"{folder}/{_CONTROLLERS}", encoding="ascii") as file:
            return frozenset(file.read().split())
    except (OSError, ValueError):
        return frozenset()


# Files and devices that are named


def _mounts(container: Container, config: AgentConfig) -> Iterator[Problem]:
    for i, mount in enumerate(container.mount):
        if mount.type is MountType.BIND and _stat(mount.source) is None:
            yield Problem(("mount", i, "source"), f"{mount.source} does not exist", f"mkdir -p {mount.source}")


def _devices(container: Container, config: AgentConfig) -> Iterator[Problem]:
    for i, device in enumerate(container.security.devices):
        path = device.partition(":")[0]
        found = _stat(path)
        if found is None:
            yield Problem(("security", "devices", i), f"{path} does not exist", "load its driver, or remove it")
        elif not (stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            yield Problem(("security", "devices", i), f"{path} is not a device", "for a file use [[mount]]")


def _seccomp(container: Container, config: AgentConfig) -> Iterator[Problem]:
    profile = container.security.seccomp_profile
    path = ("security", "seccomp_profile")
    if container.bundle:
        return
    if profile.startswith("/") and _stat(profile) is None:
        yield Problem(path, f"{profile} does not exist", 'correct the path, or write "default"')
    elif profile == "default" and not container.security.privileged and not any(map(_stat, SECCOMP_PROFILES)):
        hint = "install golang-github-containers-common (Debian, Ubuntu) or containers-common"
        yield Problem(path, f"the default profile is not installed: {SECCOMP_PROFILES[-1]}", hint)


def _timezone(container: Container, config: AgentConfig) -> Iterator[Problem]:
    name = container.timezone
    path = "/etc/localtime" if name == "local" else f"/usr/share/zoneinfo/{name}"
    if name and _stat(path) is None:
        yield Problem(("timezone",), f"{path} does not exist", "install tzdata, or correct the name")


def _log(container: Container, config: AgentConfig) -> Iterator[Problem]:
    folder = os.path.dirname(container.log.path)
    if container.log.path and not _is_folder(folder):
        yield Problem(("log", "path"), f"the folder {folder} does not exist", f"mkdir -p {folder}")


def _credentials(container: Container, config: AgentConfig) -> Iterator[Problem]:
    for i, credential in enumerate(container.credential):
        for key in ("load", "load_encrypted"):
            path = getattr(credential, key)
            if path:
                yield from _secret(path, ("credential", i, key), is_plain=key == "load")
        if credential.load_encrypted and not any(_is_program(f"{folder}/systemd-creds") for folder in _PATH):
            hint = "install systemd 250 or newer"
            yield Problem(("credential", i, "load_encrypted"), "systemd-creds is not installed", hint)


def _secret(path: str, key: KeyPath, *, is_plain: bool) -> Iterator[Problem]:
    found = _stat(path)
    if found is None:
        yield Problem(key, f"{path} does not exist", "create it, or correct the path")
    elif not stat.S_ISREG(found.st_mode):
        yield Problem(key, f"{path} is not a regular file")
    elif found.st_mode & files.WORLD:
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        yield Problem(key, f"{path} can be written by others (mode {mode})", f"chmod 600 {path}")
    elif is_plain and found.st_mode & stat.S_IROTH:
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        yield Problem(key, f"{path} can be read by everybody (mode {mode})", f"chmod 600 {path}", warning=True)


def _sockets(container: Container, config: AgentConfig) -> Iterator[Problem]:
    for i, socket in enumerate(container.socket):
        if socket.socket_user and not _has_user(socket.socket_user):
            yield Problem(
                ("socket", i, "socket_user"), f'there is no user "{socket.socket_user}"', "useradd(8) makes one"
            )
        if socket.socket_group and not _has_group(socket.socket_group):
            hint = "groupadd(8) makes one"
            yield Problem(("socket", i, "socket_group"), f'there is no group "{socket.socket_group}"', hint)


def _has_user(name: str) -> bool:
    try:
        return name.isdigit() or bool(pwd.getpwnam(name).pw_name)
    except KeyError:
        return False


def _has_group(name: str) -> bool:
    try:
        return name.isdigit() or bool(grp.getgrnam(name).gr_name)
    except KeyError:
        return False


def _namespace(container: Container, config: AgentConfig) -> Iterator[Problem]:
    kind, _, path = container.network.mode.partition(":")
    if kind == "ns" and _stat(path) is None:
        hint = "it must be there when the container starts: ip netns add NAME"
        yield Problem(("network", "mode"), f"{path} does not exist", hint, warning=True)


CHECKS: tuple[HostCheck, ...] = (
    _not_yet,
    _root,
    _bundle,
    _tools,
    _controllers,
    _mounts,
    _devices,
    _seccomp,
    _timezone,
    _log,
    _credentials,
    _sockets,
    _namespace,
)
