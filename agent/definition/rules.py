# SPDX-License-Identifier: Apache-2.0
"""What must hold between the keys of a definition; pure. What the host must have is checked in check.py.

Each rule names the keys it reads. It is left out while one of them has a problem of its own, or while an unknown key
was probably meant to be one of them: one mistake, one message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from agent.definition import sockets
from agent.definition.model import (
    CgroupMode,
    Container,
    Health,
    LogDriver,
    Mount,
    MountType,
    Notify,
    Restart,
    ServiceType,
    UpdateMode,
)
from agent.definition.parse import KeyPath, Problem, Problems
from agent.definition.runtime_args import check_runtime_args

Raw = Mapping[str, Any]
Rule = Callable[[Container, Raw], Iterator[Problem]]


def check_rules(container: Container, raw: Raw, problems: Problems) -> None:
    """Add to `problems` what contradicts."""
    doubtful = {_dotted(problem.path) for problem in problems} | {
        problem.meant for problem in problems if problem.meant
    }
    for rule, reads in RULES:
        if not any(_touches(key, bad) for key in reads for bad in doubtful):
            problems += rule(container, raw)


def _dotted(path: KeyPath) -> str:
    return ".".join(part for part in path if isinstance(part, str))


def _touches(key: str, bad: str) -> bool:
    return key == bad or bad.startswith(f"{key}.") or key.startswith(f"{bad}.")


def _table(raw: Raw, name: str) -> Raw:
    value = raw.get(name)
    return value if isinstance(value, dict) else {}


# What is run


def _root(container: Container, raw: Raw) -> Iterator[Problem]:
    given = [key for key in ("image", "rootfs", "bundle") if getattr(container, key)]
    if not given:
        empty = next((key for key in ("image", "rootfs", "bundle") if key in raw), "")
        path = (empty,) if empty else ()
        yield Problem(
            path, "one of image, rootfs and bundle is needed", 'write for example image = "docker.io/library/nginx"'
        )
    for extra in given[1:]:
        yield Problem((extra,), f"{given[0]} and {extra} are both given", "keep one of image, rootfs and bundle")


def _command(container: Container, raw: Raw) -> Iterator[Problem]:
    has_own = container.image or container.bundle or container.command or container.entrypoint
    if container.rootfs and not has_own:
        yield Problem(
            ("rootfs",), "there is no command to run in it", 'write for example command = ["/bin/httpd", "-f"]'
        )
    for key in ("command", "entrypoint"):
        words = getattr(container, key)
        if words and not words[0]:
            yield Problem((key, 0), "the name of the program is empty", "write its name or path")


def _writable(container: Container, raw: Raw) -> Iterator[Problem]:
    if container.rootfs_writable and not container.rootfs:
        yield Problem(("rootfs_writable",), "there is no rootfs", "remove it; images and bundles are not changed")
    if container.rootfs in {"/", "/usr", "/etc", "/proc", "/sys", "/dev", "/run"}:
        yield Problem(
            ("rootfs",), f"{container.rootfs} belongs to the host", "copy what is needed into a folder of its own"
        )


_BUNDLE_DECIDES = (
    "entrypoint", "command", "user", "groups", "working_directory", "hostname", "timezone", "init", "stdin",
    "terminal", "mount", "security",
)  # fmt: skip


def _bundle(container: Container, raw: Raw) -> Iterator[Problem]:
    if container.bundle:
        for key in _BUNDLE_DECIDES:
            if key in raw:
                yield Problem(
                    (key,), "has no effect with a bundle", "write it into the bundle's config.json", warning=True
                )


# Service and health


def _oneshot(container: Container, raw: Raw) -> Iterator[Problem]:
    service = container.service
    if service.type is not ServiceType.ONESHOT:
        return
    if service.restart in {Restart.ALWAYS, Restart.ON_SUCCESS}:
        hint = 'write restart = "on-failure" or "no"'
        yield Problem(("service", "restart"), f'"{service.restart}" would run a oneshot for ever', hint)
    if any(socket.on_demand for socket in container.socket):
        yield Problem(("service", "type"), "a oneshot cannot be started by its sockets", 'write type = "simple"')


def _readiness(container: Container, raw: Raw) -> Iterator[Problem]:
    service = container.service
    if service.notify is Notify.HEALTHY and not container.health.command:
        yield Problem(("service", "notify"), '"healthy" needs a health check', "set command in [health]")
    if service.notify is Notify.CONTAINER:
        return
    for key in ("watchdog_sec", "file_descriptor_store_max"):
        if getattr(service, key):
            hint = 'write notify = "container"'
            yield Problem(("service", key), "needs a container that sends notifications", hint)


def _delays(container: Container, raw: Raw) -> Iterator[Problem]:
    service, given = container.service, _table(raw, "service")
    both = "restart_sec" in given and "restart_max_delay_sec" in given
    if both and service.restart_steps and service.restart_sec > service.restart_max_delay_sec:
        hint = "raise restart_max_delay_sec, or set restart_steps = 0"
        yield Problem(("service", "restart_sec"), "is longer than restart_max_delay_sec", hint)
    if service.start_limit_burst and not service.start_limit_interval_sec:
        hint = 'set start_limit_interval_sec, for example "10s"'
        yield Problem(("service", "start_limit_burst"), "limits nothing without start_limit_interval_sec", hint)
    if service.start_limit_interval_sec and not service.start_limit_burst:
        hint = "set start_limit_burst, for example 5"
        yield Problem(("service", "start_limit_interval_sec"), "limits nothing without start_limit_burst", hint)
    if service.reload_command and service.reload_signal:
        hint = "keep one of them"
        yield Problem(("service", "reload_signal"), "is not sent, reload_command is run", hint, warning=True)


def _health(container: Container, raw: Raw) -> Iterator[Problem]:
    given = _table(raw, "health")
    if given and not container.health.command:
        yield Problem(("health",), "there is no command to check with", "set command in [health], or remove the table")
    for key in ("interval_sec", "timeout_sec", "startup_interval_sec", "startup_timeout_sec"):
        if key in given and not 0 < getattr(container.health, key) < float("inf"):
            yield Problem(
                ("health", key), "must be above 0 and not infinity", f"the default is {getattr(Health(), key):g}s"
            )


# Network, mounts, credentials


def _network(container: Container, raw: Raw) -> Iterator[Problem]:
    network = container.network
    for key in ("publish", "networks"):
        if getattr(network, key) and network.mode != "bridge":
            hint = "the port is only reserved" if key == "publish" and network.mode != "host" else ""
            yield Problem(("network", key), f'has no effect with mode = "{network.mode}"', hint, warning=True)
    if network.mode == f"container:{container.name}":
        yield Problem(("network", "mode"), "names the container itself")


def _mounts(container: Container, raw: Raw) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for i, mount in enumerate(container.mount):
        path = ("mount", i)
        if mount.target in {"", "/"}:
            where = (*path, "target") if mount.target else path
            yield Problem(
                where, "target is missing" if not mount.target else "target is the root itself", "name a folder"
            )
        elif mount.target in seen:
            yield Problem((*path, "target"), f"{mount.target} is the target of mount[{seen[mount.target]}] too")
        seen.setdefault(mount.target, i)
        yield from _mount(mount, path, _given(raw, "mount", i))


def _given(raw: Raw, name: str, index: int) -> Raw:
    entries = raw.get(name)
    entry = entries[index] if isinstance(entries, list) and index < len(entries) else {}
    return entry if isinstance(entry, dict) else {}


def _mount(mount: Mount, path: KeyPath, given: Raw) -> Iterator[Problem]:
    needs_source = mount.type in {MountType.BIND, MountType.VOLUME}
    source = (*path, "source") if "source" in given else path
    if needs_source and not mount.source:
        yield Problem(
            source, "source is missing", "name the folder of the host" if mount.type is MountType.BIND else "name it"
        )
    elif mount.type is MountType.BIND and (not mount.source.startswith("/") or ".." in mount.source.split("/")):
        hint = 'for a volume write type = "volume"' if "/" not in mount.source else 'write it from "/" on, without ".."'
        yield Problem(source, "the source of a bind mount is an absolute path", hint)
    elif mount.type is MountType.VOLUME and not sockets.is_volume_name(mount.source):
        hint = 'for a folder write type = "bind"' if "/" in mount.source else "letters, digits, '_', '.', '-'"
        yield Problem(source, "this is not the name of a volume", hint)
    elif not needs_source and mount.source:
        yield Problem(source, f"a {mount.type} has no source", "remove it")
    if mount.type is not MountType.TMPFS:
        for key in ("size", "mode"):
            if key in given:
                yield Problem((*path, key), "is only for a tmpfs", f"remove it, or write type = {MountType.TMPFS!s}")
    if {"ro", "rw"} <= set(mount.options) or (mount.read_only and "rw" in mount.options):
        yield Problem((*path, "options"), "both read-only and writable", "keep one")


def _credentials(container: Container, raw: Raw) -> Iterator[Problem]:
    seen: set[str] = set()
    for i, credential in enumerate(container.credential):
        path = ("credential", i)
        given = [key for key in ("load", "load_encrypted", "inherit") if getattr(credential, key)]
        if not credential.name:
            yield Problem(path, "name is missing", "it is the file's name in $CREDENTIALS_DIRECTORY")
        elif credential.name in seen:
            yield Problem((*path, "name"), f'"{credential.name}" is given twice')
        seen.add(credential.name)
        if not given:
            yield Problem(path, "one of load, load_encrypted and inherit is needed")
        for extra in given[1:]:
            yield Problem((*path, extra), f"{given[0]} and {extra} are both given", "keep one")


# Security


def _capabilities(container: Container, raw: Raw) -> Iterator[Problem]:
    security = container.security
    dropped = set(security.capabilities_drop)
    for key in ("capabilities_add", "ambient_capabilities"):
        for i, name in enumerate(getattr(security, key)):
            if name in dropped:
                yield Problem(("security", key, i), f"{name} is dropped too", "keep it in one list")


def _id_maps(container: Container, raw: Raw) -> Iterator[Problem]:
    security = container.security
    if security.user_namespace == "map" and not security.uid_map:
        hint = 'set uid_map, for example ["0:100000:65536"]'
        yield Problem(("security", "user_namespace"), '"map" needs a mapping', hint)
    for key in ("uid_map", "gid_map"):
        maps = getattr(security, key)
        if maps and security.user_namespace != "map":
            yield Problem(("security", key), "has no effect", 'write user_namespace = "map"')
        elif i := _overlap(maps):
            yield Problem(("security", key, i), "overlaps with a mapping before it")
    if security.gid_map and not security.uid_map:
        yield Problem(("security", "gid_map"), "there is no uid_map", "set both")


def _overlap(maps: Iterable[str]) -> int:
    """The index of the first mapping that shares ids with an earlier one; 0 for none."""
    seen: list[tuple[int, int, int]] = []
    for i, entry in enumerate(maps):
        inside, outside, count = (int(part) for part in entry.split(":"))
        for first, host, length in seen:
            if (inside < first + length and first < inside + count) or (
                outside < host + length and host < outside + count
            ):
                return i
        seen.append((inside, outside, count))
    return 0


def _sysctls(container: Container, raw: Raw) -> Iterator[Problem]:
    """Only parameters of the container's own namespaces: everything else is the whole host's (CVE-2022-0811)."""
    for name in container.security.sysctls:
        namespace = sysctl_namespace(name)
        path = ("security", "sysctls", name)
        if namespace == "":
            yield Problem(path, "is a parameter of the whole host", "set it in /etc/sysctl.d")
        elif _is_shared(container, namespace):
            yield Problem(path, f"the container shares the host's {namespace} namespace", "set it in /etc/sysctl.d")


_IPC_SYSCTLS = frozenset({"msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"})


def sysctl_namespace(name: str) -> str:
    """The kind of namespace that has its own value of a kernel parameter; "" where there is only one for the host."""
    if name.startswith("net."):
        return "network"
    if name.startswith("fs.mqueue.") or (name.startswith("kernel.") and name[7:] in _IPC_SYSCTLS):
        return "ipc"
    return "uts" if name == "kernel.domainname" else ""


def _is_shared(container: Container, namespace: str) -> bool:
    match namespace:
        case "network":
            return container.network.mode == "host"
        case "ipc":
            return container.security.ipc == "host"
        case _:
            return container.security.uts == "host"


def _privileged(container: Container, raw: Raw) -> Iterator[Problem]:
    given = _table(raw, "security")
    if container.security.privileged and given.get("capabilities_drop"):
        hint = "write capabilities_add without privileged"
        yield Problem(("security", "capabilities_drop"), "takes from a privileged container", hint, warning=True)


# Log, cgroup, update, dependencies


def _log(container: Container, raw: Raw) -> Iterator[Problem]:
    log, given = container.log, _table(raw, "log")
    if log.driver is LogDriver.PASSTHROUGH and container.terminal:
        yield Problem(("log", "driver"), "a terminal cannot be passed through", 'write driver = "journald"')
    for key in ("tag", "labels"):
        if getattr(log, key) and log.driver is not LogDriver.JOURNALD:
            hint = 'remove it, or write driver = "journald"'
            yield Problem(("log", key), f'conmon refuses it with driver = "{log.driver}"', hint)
    for key in ("path", "size_max"):
        if key in given and getattr(log, key) and log.driver is not LogDriver.K8S_FILE:
            hint = 'remove it, or write driver = "k8s-file"'
            yield Problem(("log", key), f'has no effect with driver = "{log.driver}"', hint)


def _cgroup(container: Container, raw: Raw) -> Iterator[Problem]:
    if container.cgroup.mode is CgroupMode.DISABLED and container.resources.properties:
        path = ("resources", next(iter(container.resources.properties)))
        yield Problem(path, 'needs a cgroup, and [cgroup] has mode = "disabled"', 'write mode = "split"')


def _update(container: Container, raw: Raw) -> Iterator[Problem]:
    if container.update.mode is UpdateMode.OFF:
        return
    local = ("oci:", "oci-archive:", "docker-archive:", "dir:")
    if not container.image or container.image.startswith(local):
        yield Problem(("update", "mode"), "there is no registry to ask", 'write mode = "off"')
    elif "@sha" in container.image:
        yield Problem(
            ("update", "mode"), "an image named by its digest never changes", 'write mode = "off"', warning=True
        )


def _dependencies(container: Container, raw: Raw) -> Iterator[Problem]:
    for key in ("after", "requires", "wants", "restart_with", "conflicts"):
        names = getattr(container, key)
        for i, name in enumerate(names):
            if name == container.name:
                yield Problem((key, i), "names the container itself", "remove it")
            elif name in names[:i]:
                yield Problem((key, i), f'"{name}" is given twice', "remove one", warning=True)
    for i, name in enumerate(container.conflicts):
        if name in {*container.requires, *container.wants}:
            yield Problem(("conflicts", i), f'"{name}" is also required or wanted', "keep one")


RULES: tuple[tuple[Rule, tuple[str, ...]], ...] = (
    (_root, ("image", "rootfs", "bundle")),
    (_command, ("image", "rootfs", "bundle", "command", "entrypoint")),
    (_writable, ("rootfs", "rootfs_writable")),
    (_bundle, ("image", "rootfs", "bundle")),
    (_oneshot, ("service.type", "service.restart", "socket.on_demand")),
    (_readiness, ("service.notify", "service.watchdog_sec", "service.file_descriptor_store_max", "health.command")),
    (
        _delays,
        (
            "service.restart_sec",
            "service.restart_max_delay_sec",
            "service.restart_steps",
            "service.start_limit_burst",
            "service.start_limit_interval_sec",
            "service.reload_command",
            "service.reload_signal",
        ),
    ),
    (_health, ("health",)),
    (sockets.check_sockets, ("socket",)),
    (_network, ("network",)),
    (_mounts, ("mount",)),
    (_credentials, ("credential",)),
    (_capabilities, ("security.capabilities_add", "security.capabilities_drop", "security.ambient_capabilities")),
    (_id_maps, ("security.user_namespace", "security.uid_map", "security.gid_map")),
    (_sysctls, ("security.sysctls", "security.ipc", "security.uts", "network.mode")),
    (_privileged, ("security.privileged", "security.capabilities_drop")),
    (_log, ("log", "terminal")),
    (_cgroup, ("cgroup.mode", "resources")),
    (check_runtime_args, ("runtime.args",)),
    (_update, ("update.mode", "image", "rootfs", "bundle")),
    (_dependencies, ("after", "requires", "wants", "restart_with", "conflicts")),
)
"""Each rule with the keys that it reads."""
