# SPDX-License-Identifier: Apache-2.0
"""What a runtime is told for a definition is never weaker than what podman tells it for the same options."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.host.isolation import definition, shiftable_rootfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.host.hosts import Host

Json = dict[str, Any]

FLAGS = ("ro", "nosuid", "nodev", "noexec")
OPT = "--security-opt"
SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")


class Option(NamedTuple):
    """The same wish twice. `keys` are of the top level, `tables` below it; `group`: no two of one group together."""

    id: str
    group: str
    keys: str = ""
    security: str = ""
    tables: str = ""
    podman: str = ""


OPTIONS = (
    Option("user", "user", keys='user = "nobody"', podman="--user nobody"),
    Option("ids", "user", keys='user = "33:33"\ngroups = ["daemon"]', podman="--user 33:33 --group-add daemon"),
    Option("env", "env", keys='environment = { A = "b c", HOME = "/x" }', podman="--env 'A=b c' --env HOME=/x"),
    Option("workdir", "workdir", keys='working_directory = "/tmp"', podman="--workdir /tmp"),
    Option("hostname", "uts", keys='hostname = "web"', podman="--hostname web"),
    Option("terminal", "terminal", keys="terminal = true", podman="--tty"),
    Option("add", "capabilities", security='capabilities_add = ["NET_ADMIN"]', podman="--cap-add NET_ADMIN"),
    Option("drop", "capabilities", security='capabilities_drop = ["ALL"]', podman="--cap-drop ALL"),
    Option(
        "add-drop",
        "capabilities",
        security='capabilities_drop = ["ALL"]\ncapabilities_add = ["CHOWN", "SETUID"]',
        podman="--cap-drop ALL --cap-add CHOWN,SETUID",
    ),
    Option("add-all", "capabilities", security='capabilities_add = ["ALL"]', podman="--cap-add ALL"),
    Option("privileged", "capabilities", security="privileged = true", podman="--privileged"),
    Option("nnp", "nnp", security="no_new_privileges = true", podman=f"{OPT} no-new-privileges"),
    Option("read-only", "root", security="read_only = true", podman="--read-only"),
    Option(
        "read-only-all",
        "root",
        security="read_only = true\nread_only_tmpfs = false",
        podman="--read-only --read-only-tmpfs=false",
    ),
    Option(
        "tmpfs",
        "mount",
        tables='[[mount]]\ntype = "tmpfs"\ntarget = "/scratch"\nsize = "1M"',
        podman="--tmpfs /scratch:size=1048576",
    ),
    Option(
        "bind",
        "mount",
        tables='[[mount]]\ntype = "bind"\nsource = "/etc"\ntarget = "/data"',
        podman="--volume /etc:/data",
    ),
    Option(
        "bind-ro",
        "mount",
        tables='[[mount]]\ntype = "bind"\nsource = "/etc"\ntarget = "/data"\nread_only = true',
        podman="--volume /etc:/data:ro",
    ),
    Option("volume", "mount", tables='[[mount]]\ntype = "volume"\nsource = "v"\ntarget = "/data"', podman="-v v:/data"),
    Option("device", "device", security='devices = ["/dev/fuse"]', podman="--device /dev/fuse"),
    Option("device-ro", "device", security='devices = ["/dev/fuse:/dev/f:r"]', podman="--device /dev/fuse:/dev/f:r"),
    Option("ulimit", "limit", tables='[resources]\nlimit_nofile = "64:128"', podman="--ulimit nofile=64:128"),
    Option("oom", "limit", tables="[resources]\noom_score_adjust = 500", podman="--oom-score-adj 500"),
    Option("none", "network", tables='[network]\nmode = "none"', podman="--network none"),
    Option("private", "network", tables='[network]\nmode = "private"', podman="--network none"),
    Option(
        "sysctl",
        "network",
        security='sysctls = { "net.ipv4.ip_unprivileged_port_start" = "80" }',
        tables='[network]\nmode = "private"',
        podman="--network none --sysctl net.ipv4.ip_unprivileged_port_start=80",
    ),
    Option(
        "mapped",
        "userns",
        security='user_namespace = "map"\nuid_map = ["0:300000:65536"]',
        podman="--uidmap 0:300000:65536",
    ),
    Option("pid", "pid", security='pid = "host"', podman="--pid host"),
    Option("ipc", "ipc", security='ipc = "host"', podman="--ipc host"),
    Option("no-ipc", "ipc", security='ipc = "none"', podman="--ipc none"),
    Option("uts", "uts", security='uts = "host"', podman="--uts host"),
    Option("unconfined", "seccomp", security='seccomp_profile = "unconfined"', podman=f"{OPT} seccomp=unconfined"),
    Option("mask", "mask", security='masked_paths = ["/proc/cpuinfo"]', podman=f"{OPT} mask=/proc/cpuinfo"),
    Option("unmask", "mask", security='unmasked_paths = ["ALL"]', podman=f"{OPT} unmask=ALL"),
    Option("umask", "umask", security='umask = "0077"', podman="--umask 0077"),
)  # fmt: skip
NOTHING = Option("plain", "")

# Where we give more than podman. Each row has its reason; one that no case needs any more fails the test.
ALLOWED = {
    "env: container": "systemd's container interface asks for it; podman sets it for images, not for --rootfs",
}


class Case(NamedTuple):
    name: str
    options: tuple[Option, ...]

    def toml(self, root: str) -> str:
        security = [o.security for o in self.options if o.security]
        tables = [o.tables for o in self.options if o.tables]
        keys = [f'rootfs = "{root}"', "autostart = true", *(o.keys for o in self.options if o.keys)]
        return "\n".join([*keys, *(["[security]", *security] if security else []), *tables])

    def podman(self, root: str) -> str:
        words = [o.podman for o in self.options if o.podman]
        network = "" if any("--network" in word for word in words) else "--network host"
        mapped = ":idmap" if any("--uidmap" in word for word in words) else ""
        fixed = f"podman create --name spec-{self.name} --pids-limit=0 --cgroups=enabled {network}"
        return f"{fixed} {' '.join(words)} --rootfs {root}{mapped} /bin/sleep infinity"


def cases() -> list[Case]:
    """Each option alone, and a dozen mixtures."""
    mixing = random.Random(20)
    found = [Case(option.id, (option,)) for option in (NOTHING, *OPTIONS)]
    # In a host of this kind podman makes little of a user namespace.
    mixed = [option for option in OPTIONS if option.group != "userns"]
    for number in range(12):
        chosen = {option.group: option for option in mixing.sample(mixed, 5)}
        found.append(Case(f"mix{number}", tuple(chosen.values())))
    return found


# Comparing: each checker yields what is weaker with us, as "aspect: what".


def weaknesses(ours: Json, theirs: Json) -> Iterator[str]:
    for check in (_process, _capabilities, _hidden, _seccomp, _namespaces, _devices, _mounts, _rest):
        yield from check(ours, theirs)


def _process(ours: Json, theirs: Json) -> Iterator[str]:
    mine, other = ours["process"], theirs["process"]
    for key in ("cwd", "terminal", "oomScoreAdj"):
        if (mine.get(key) or None) != (other.get(key) or None):
            yield f"{key}: {mine.get(key)} for {other.get(key)}"
    if other.get("noNewPrivileges") and not mine.get("noNewPrivileges"):
        yield "noNewPrivileges: off"
    user, their_user = mine["user"], other["user"]
    if (user["uid"], user["gid"]) != (their_user["uid"], their_user["gid"]):
        yield f"user: {user} for {their_user}"
    for gid in set(user.get("additionalGids", ())) - set(their_user.get("additionalGids", ())) - {user["gid"]}:
        yield f"group: {gid}"
    if user.get("umask", 0o22) & their_user["umask"] != their_user["umask"]:
        yield f"umask: {user.get('umask')}"
    names = {item.partition("=")[0] for item in mine["env"]}
    for name in names - {item.partition("=")[0] for item in other["env"]}:
        yield f"env: {name}"
    wanted = {limit["type"]: limit for limit in other.get("rlimits", ())}
    for limit in mine.get("rlimits", ()):
        if limit["hard"] > wanted[limit["type"]]["hard"]:
            yield f"rlimit: {limit}"


def _capabilities(ours: Json, theirs: Json) -> Iterator[str]:
    for kind in SETS:
        held, given = (set(spec["process"]["capabilities"].get(kind, ())) for spec in (ours, theirs))
        for capability in sorted(held - given):
            yield f"{kind} capability: {capability}"


def _hidden(ours: Json, theirs: Json) -> Iterator[str]:
    masked = set(ours["linux"].get("maskedPaths", ()))
    closed = masked | set(ours["linux"].get("readonlyPaths", ()))
    for path in sorted(set(theirs["linux"].get("maskedPaths", ())) - masked):
        yield f"not masked: {path}"
    for path in sorted(set(theirs["linux"].get("readonlyPaths", ())) - closed):
        yield f"not read-only: {path}"


def _seccomp(ours: Json, theirs: Json) -> Iterator[str]:
    mine, other = _filter(ours), _filter(theirs)
    # What only they allow is stricter with us: a capability that the agent gives to nobody closes its calls, too.
    weaker = {rule for rule in mine - other if "SCMP_ACT_ALLOW" in rule}
    weaker |= {rule for rule in other - mine if "SCMP_ACT_ALLOW" not in rule}
    for rule in sorted(map(str, weaker)):
        yield f"seccomp: {rule}"


def _filter(spec: Json) -> set[Any]:
    """One entry for each rule on each system call, whatever way they are grouped."""
    profile = spec["linux"].get("seccomp")
    if not profile:
        return set()
    found: set[Any] = {("default", profile["defaultAction"], profile.get("defaultErrnoRet"))}
    found |= {("architecture", name) for name in profile.get("architectures", ())}
    for rule in profile["syscalls"]:
        conditions = tuple(
            (a["index"], a["value"], a.get("valueTwo", 0), a["op"]) for a in rule.get("args") or ()
        )  # fmt: skip
        found |= {(name, rule["action"], rule.get("errnoRet"), conditions) for name in rule["names"]}
    return found


def _namespaces(ours: Json, theirs: Json) -> Iterator[str]:
    mine = {entry["type"]: entry for entry in ours["linux"]["namespaces"]}
    for entry in theirs["linux"]["namespaces"]:
        if entry["type"] not in mine:
            yield f"namespace: no {entry['type']}"
    for key in ("uidMappings", "gidMappings"):
        ranges = {(m["hostID"], m["size"]) for m in theirs["linux"].get(key, ())}
        for mapping in ours["linux"].get(key, ()):
            if (mapping["hostID"], mapping["size"]) not in ranges:
                yield f"{key}: {mapping}"


# config-linux.md: every runtime makes and allows these.
_ALWAYS = {("c", 1, 3), ("c", 1, 5), ("c", 1, 7), ("c", 1, 8), ("c", 1, 9), ("c", 5, 0), ("c", 5, 2), ("c", 136, None)}


def _devices(ours: Json, theirs: Json) -> Iterator[str]:
    theirs_by_path = {device["path"] for device in theirs["linux"].get("devices", ())}
    for device in ours["linux"].get("devices", ()):
        if device["path"] not in theirs_by_path:
            yield f"device: {device['path']}"
    allowed = list(_allowed(theirs))
    for rule in _allowed(ours):
        number = rule[:3]
        same = [other for other in allowed if other[:3] in {number, (None, None, None)}]
        if number not in _ALWAYS and not any(set(rule[3]) <= set(other[3]) for other in same):
            yield f"device access: {rule}"


def _allowed(spec: Json) -> Iterator[tuple[Any, ...]]:
    for rule in spec["linux"].get("resources", {}).get("devices", ()):
        if rule["allow"]:
            kind = rule.get("type")
            yield None if kind in {None, "a"} else kind, rule.get("major"), rule.get("minor"), rule["access"]


def _mounts(ours: Json, theirs: Json) -> Iterator[str]:
    others = {mount["destination"]: mount for mount in theirs["mounts"]}
    for mount in ours["mounts"]:
        destination = mount["destination"]
        if destination not in others:
            yield f"mount: {destination}"
            continue
        for flag in FLAGS:
            if flag in others[destination]["options"] and flag not in mount["options"]:
                yield f"mount {destination}: not {flag}"
        if mount["type"] == "bind" and others[destination]["type"] not in {"bind", ""}:
            yield f"mount {destination}: of the host"
        if {"shared", "rshared"} & set(mount["options"]) - set(others[destination]["options"]):
            yield f"mount {destination}: shared"


def _rest(ours: Json, theirs: Json) -> Iterator[str]:
    if theirs["root"].get("readonly") and not ours["root"].get("readonly"):
        yield "root: writable"
    if "hostname" in theirs and "hostname" not in ours:
        yield "hostname: the host's"
    for name in set(ours["linux"].get("sysctl", {})) - set(theirs["linux"].get("sysctl", {})):
        yield f"sysctl: {name}"
    for key in set(ours) - set(theirs) - {"annotations"}:
        yield f"further part: {key}"
    for name in set(ours.get("annotations", {})):
        yield f"annotation: {name}"
    if ours["linux"].get("rootfsPropagation", "") != theirs["linux"].get("rootfsPropagation", ""):
        yield f"propagation: {ours['linux'].get('rootfsPropagation')}"


@pytest.fixture(scope="module")
def theirs(host: Host) -> dict[str, Json]:
    """What podman tells the runtime, by the case's name."""
    root = shiftable_rootfs(host, "spec-root")
    # podman makes that link itself, but not in a root whose owners are shifted.
    host.run(["ln", "-sf", "/proc/mounts", f"{root}/etc/mtab"])
    # Where podman cannot go on (a user namespace in a nested host), its config.json is written nevertheless.
    lines = [f"{c.podman(root)} >/dev/null; podman init spec-{c.name} >/dev/null 2>&1 || true" for c in cases()]
    folder = f"/var/lib/containers/storage/overlay-containers/$({_ID} spec-%s)/userdata"
    lines += [f"cat {folder % c.name}/config.json || echo null; echo" for c in cases()]
    try:
        output = host.run("set -e\n" + "\n".join(lines), timeout=240).stdout.split("\n")
    finally:
        host.run("podman rm --all --force --time 0; podman volume rm --all", timeout=120, check=False)
    found = {case.name: json.loads(text) for case, text in zip(cases(), filter(None, output), strict=True)}
    assert [name for name, config in found.items() if config is None] == []
    return found


_ID = "podman inspect --format '{{.Id}}'"


def test_never_weaker_than_podman(clean: Host, theirs: dict[str, Json]) -> None:
    root = shiftable_rootfs(clean, "spec-root")
    for case in cases():
        definition(clean, case.name, case.toml(root))
    clean.reload(timeout=120)
    ids = {status["name"]: status["id"] for status in clean.status()}
    assert {status["name"]: status["error"] for status in clean.status() if status["error"]} == {}
    lines = clean.run("for b in /run/cleat/b/*; do cat $b/config.json; echo; done", timeout=60).stdout.splitlines()
    folders = clean.run("ls /run/cleat/b").stdout.split()
    configs = dict(zip(folders, map(json.loads, lines), strict=True))
    found: dict[str, list[str]] = {}
    for case in cases():
        for weakness in weaknesses(configs[ids[case.name]], theirs[case.name]):
            found.setdefault(weakness, []).append(case.name)
    surprising = [f"{weakness} ({', '.join(names)})" for weakness, names in found.items() if weakness not in ALLOWED]
    assert not surprising, "weaker than podman:\n" + "\n".join(surprising)
    assert set(ALLOWED) - set(found) == set(), "no case needs these any more"


def _without(spec: Json, *path: str) -> None:
    *folders, last = path
    for name in folders:
        spec = spec[name]
    spec.pop(last)


WEAKENED: dict[str, Callable[[Json], object]] = {
    "bounding capability: CAP_SYS_ADMIN": lambda s: s["process"]["capabilities"]["bounding"].append("CAP_SYS_ADMIN"),
    "ambient capability: CAP_CHOWN": lambda s: s["process"]["capabilities"].update(ambient=["CAP_CHOWN"]),
    "not masked: /proc/kcore": lambda s: s["linux"]["maskedPaths"].remove("/proc/kcore"),
    "not read-only: /proc/sys": lambda s: s["linux"]["readonlyPaths"].remove("/proc/sys"),
    "seccomp: ('default', 'SCMP_ACT_ERRNO', 38)": lambda s: _without(s, "linux", "seccomp"),
    "namespace: no ipc": lambda s: s["linux"]["namespaces"].remove({"type": "ipc"}),
    "mount /sys: not ro": lambda s: next(m for m in s["mounts"] if m["destination"] == "/sys")["options"].remove("ro"),
    "mount: /host": lambda s: s["mounts"].append(
        {"destination": "/host", "type": "bind", "source": "/", "options": []}
    ),
    "device: /dev/sda": lambda s: s["linux"].update(devices=[{"path": "/dev/sda"}]),
    "device access: ('b', 8, 0, 'rwm')": lambda s: s["linux"]["resources"]["devices"].append(
        {"allow": True, "type": "b", "major": 8, "minor": 0, "access": "rwm"}
    ),
    "noNewPrivileges: off": lambda s: s["process"].update(noNewPrivileges=False),
    "further part: hooks": lambda s: s.update(hooks={}),
    "env: NOTIFY_SOCKET": lambda s: s["process"]["env"].append("NOTIFY_SOCKET=/run/systemd/notify"),
    "annotation: org.systemd.property.X": lambda s: s.update(annotations={"org.systemd.property.X": "1"}),
}


@pytest.mark.parametrize("weakness", WEAKENED)
def test_the_comparison_sees_what_is_weaker(theirs: dict[str, Json], weakness: str) -> None:
    theirs_now = json.loads(json.dumps(theirs["nnp"]))
    theirs_now.pop("annotations", None)
    ours = json.loads(json.dumps(theirs_now))
    assert list(weaknesses(ours, theirs_now)) == []
    WEAKENED[weakness](ours)
    assert weakness in list(weaknesses(ours, theirs_now))
