# SPDX-License-Identifier: Apache-2.0
"""Runs inside a test host: whether each running container's first process has what its spec says, and no more.

Prints a JSON list of what is wrong; empty is good. Processes that are just starting or ending are left out.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]

SETS = {
    "CapBnd": "bounding",
    "CapPrm": "permitted",
    "CapEff": "effective",
    "CapInh": "inheritable",
    "CapAmb": "ambient",
}
# linux/capability.h, in the kernel's order.
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
# What an agent under systemd, and a conmon, have in their environments; HOME, PATH and so on may be a shell's doing.
FOREIGN = (
    "_OCI_", "_CONTAINERS_", "LISTEN_", "NOTIFY_", "WATCHDOG_", "INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_",
    "MAINPID", "MANAGERPID", "FDSTORE", "CREDENTIALS_DIRECTORY", "RUNTIME_DIRECTORY", "STATE_DIRECTORY",
    "CONFIGURATION_DIRECTORY", "XDG_", "DBUS_", "PYTHON", "MEMORY_PRESSURE_",
)  # fmt: skip
# Nodes that a runtime binds where it cannot make them, and what it mounts for a terminal.
DEVICES = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "core")}
UNSAFE = {".", ".."}


def main() -> None:
    found = []
    strangers = _open_elsewhere()
    for bundle in Path("/run/cleat/b").glob("*"):
        try:
            spec, pid = json.loads((bundle / "config.json").read_text()), int((bundle / "pidfile").read_text())
            problems = list(audit(spec, pid, strangers))
            args = Path(f"/proc/{pid}/cmdline").read_bytes()
            alive = args and not args.startswith(
                (b"/usr/bin/crun", b"crun", b"runc", b"/usr/sbin/runc", b"/proc/self/")
            )
        except (OSError, ValueError):
            continue
        if alive:
            found += [f"{spec['process']['args']} ({bundle.name[:12]}): {problem}" for problem in problems]
    json.dump(found, sys.stdout)


def audit(spec: Json, pid: int, strangers: dict[str, str]) -> Iterator[str]:
    proc = Path(f"/proc/{pid}")
    mounts = list(_mounts(proc))
    yield from _fds(spec, proc, {number for number, _ in mounts}, strangers)
    yield from _status(spec, proc)
    yield from _environment(spec, proc)
    yield from _unexpected_mounts(spec, [point for _, point in mounts])


def _declared(spec: Json) -> int:
    env = dict(item.partition("=")[::2] for item in spec["process"]["env"])
    return int(env.get("LISTEN_FDS", "0"))


def _fds(spec: Json, proc: Path, own_mounts: set[str], strangers: dict[str, str]) -> Iterator[str]:
    """Beyond the standard streams and the passed sockets there is only what it opened itself, in its own mounts."""
    for entry in sorted((proc / "fd").iterdir(), key=lambda entry: int(entry.name)):
        if int(entry.name) < 3 + _declared(spec):
            continue
        target = str(entry.readlink())
        kind = stat.S_IFMT(entry.stat().st_mode)
        if kind in {stat.S_IFSOCK, stat.S_IFIFO} or target.startswith("anon_inode:"):
            holder = strangers.get(target)
            if holder:
                yield f"fd {entry.name} is {holder}'s {target}"
            continue
        info = (proc / "fdinfo" / entry.name).read_text().split()
        mount = info[info.index("mnt_id:") + 1]
        if mount not in own_mounts and not target.startswith(("/memfd:", "mnt:", "net:", "pid:", "user:")):
            yield f"fd {entry.name} leads out of the container: {target}"
    cwd = str((proc / "cwd").readlink())
    if "(unreachable)" in cwd or (proc / "root" / cwd.lstrip("/")).exists() is False:
        yield f"its working directory is {cwd}"


def _open_elsewhere() -> dict[str, str]:
    """Sockets and pipes of the agent, of PID 1 and of conmons (but not the container's own streams)."""
    found: dict[str, str] = {}
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            name = (proc / "comm").read_text().strip()
            if name not in {"cleat-agent", "conmon", "systemd"} and proc.name != "1":
                continue
            for entry in (proc / "fd").iterdir():
                target = str(entry.readlink())
                if target.startswith(("socket:", "pipe:")):
                    found[target] = name
        except OSError:
            continue
    return found


def _mounts(proc: Path) -> Iterator[tuple[str, str]]:
    for line in (proc / "mountinfo").read_text().splitlines():
        number, _, _, _, point, *_ = line.split(" ")
        yield number, point.encode().decode("unicode_escape")


def _status(spec: Json, proc: Path) -> Iterator[str]:
    status = dict(line.partition(":\t")[::2] for line in (proc / "status").read_text().splitlines())
    given = spec["process"].get("capabilities", {})
    for line, name in SETS.items():
        held = {f"CAP_{c}" for bit, c in enumerate(CAPABILITIES) if int(status[line], 16) >> bit & 1}
        # The payload may have given up some; execve(2) makes root's permitted ones out of the bounding set.
        allowed = set(given.get(name, ())) | (
            set(given.get("bounding", ())) if name in {"permitted", "effective"} else set()
        )
        if held - allowed:
            yield f"{line}: {sorted(held - allowed)}"
    if spec["process"].get("noNewPrivileges") and status["NoNewPrivs"] != "1":
        yield "may gain privileges"
    if spec["linux"].get("seccomp") and status["Seccomp"] != "2":
        yield "has no seccomp filter"


def _environment(spec: Json, proc: Path) -> Iterator[str]:
    given = {item.partition("=")[0] for item in spec["process"]["env"]}
    for item in (proc / "environ").read_bytes().decode(errors="replace").split("\0"):
        name = item.partition("=")[0]
        if name.startswith(FOREIGN) and name not in given:
            yield f"environment: {name}"


def _unexpected_mounts(spec: Json, points: list[str]) -> Iterator[str]:
    linux = spec["linux"]
    hidden = {*linux.get("maskedPaths", ()), *linux.get("readonlyPaths", ())}
    wanted = {os.path.normpath(mount["destination"]) for mount in spec.get("mounts", ())}
    whole = tuple(
        os.path.normpath(mount["destination"]) + "/"
        for mount in spec.get("mounts", ())
        if "rbind" in mount["options"] or mount["type"] == "cgroup"
    )
    devices = {device["path"] for device in linux.get("devices", ())} | DEVICES
    for point in points:
        if point == "/" or point in wanted | hidden | devices or point.startswith(whole):
            continue
        # Where the root has a link on the way (/var/run), the mount is at its end.
        if any(_same_end(point, other) for other in wanted):
            continue
        yield f"mount: {point}"


def _same_end(point: str, wanted: str) -> bool:
    return os.path.basename(point) == os.path.basename(wanted) and os.path.basename(point) not in UNSAFE


if __name__ == "__main__":
    main()
