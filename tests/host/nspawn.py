# SPDX-License-Identifier: Apache-2.0
"""Private hosts for tests: Debian 13 under a real systemd, booted with systemd-nspawn over one tree.

A host is three things on the machine: a process (nspawn, found again by pid and start time), a cgroup of
its own and a scratch folder. Every mount lives in nspawn's own mount namespace, so nothing of it can stay
behind. Standard library only: `tests/host/boot` runs this with the machine's plain Python.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import shutil
import socket
import subprocess
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tests.host.machine import (
    CLEAN_ENVIRONMENT,
    HostError,
    Process,
    cache,
    readable_or_ended,
    start_time,
    tail,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
BOOT_SEC = 60.0
STOP_SEC = 30.0
# The shell moves itself and becomes the command.
JOIN_CGROUP = 'echo 0 >"$1/cgroup.procs" && shift && exec "$@"'
# In nspawn there is no kernel to load modules into.
MASKED_IN_NSPAWN = ("systemd-modules-load.service", "systemd-udevd.service", "systemd-udev-trigger.service")


@dataclass(frozen=True)
class Booted:
    """A running host, as it is kept in its scratch folder and printed by `boot`."""

    name: str
    leader: int
    leader_start: int
    nspawn: int
    nspawn_start: int
    cgroup: str
    tree: str
    scratch: str
    state: str

    @property
    def init(self) -> Process:
        return Process(self.leader, self.leader_start)

    @property
    def supervisor(self) -> Process:
        return Process(self.nspawn, self.nspawn_start)

    @property
    def console(self) -> Path:
        return Path(self.scratch, "console.log")

    def lost(self) -> str:
        """Why nothing can be run in it any more; "" if something can."""
        return "" if self.init.alive() else "its systemd has ended"

    def command(self, argv: list[str], *, fork: bool = True) -> list[str]:
        """The machine-side command that runs `argv` in the host, in folder /, with a clean environment.

        It runs in a cgroup of the host that belongs to no unit. With `fork=False` the first process of
        `argv` stays in the machine's pid namespace and only its children are in the host's: for `timeout`,
        which then passes signals on to them.
        """
        enter = ["nsenter", "-t", str(self.leader), "-a"] + ([] if fork else ["--no-fork"])
        inside = [*enter, "env", "-i", *CLEAN_ENVIRONMENT, *argv]
        return ["sh", "-c", JOIN_CGROUP, "sh", f"{self.cgroup}/payload/exec", *inside]


def scratch_of(name: str) -> Path:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,40}", name):
        raise HostError(f"host name {name!r}: must be lower case letters, digits and dashes, at most 41")
    return cache() / "hosts" / name


def tree() -> Path:
    done = subprocess.run([HERE / "tree"], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise HostError("tests/host/tree failed (see its messages above)")
    return Path(done.stdout.decode().strip())


def booted(name: str) -> Booted | None:
    """The record of a host, whether it still runs or not."""
    try:
        return Booted(**json.loads((scratch_of(name) / "host.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def running(name: str) -> Booted:
    host = booted(name)
    if host is None or not host.init.alive():
        raise HostError(f"host {name}: is not running; boot it with: tests/host/boot boot {name}")
    return host


def hosts() -> list[Booted]:
    folder = cache() / "hosts"
    names = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    return [host for host in map(booted, names) if host is not None]


def boot(name: str, *, binds: tuple[str, ...] = (), binds_ro: tuple[str, ...] = ()) -> Booted:
    """Boots a host and returns once its systemd has reached its default target. Raises HostError."""
    if os.geteuid() != 0:
        raise HostError("booting a host needs root")
    if shutil.which("systemd-nspawn") is None:
        raise HostError("systemd-nspawn is missing; install it with: apt-get install systemd-container")
    base = tree()
    scratch = scratch_of(name)
    scratch.mkdir(parents=True, exist_ok=True)
    with _locked(name):
        _refuse_or_clear(name, scratch)
        try:
            host = _boot(name, base, scratch, binds, binds_ro)
        except BaseException as error:
            console = tail(scratch / "console.log")
            _dispose(name, scratch)
            if isinstance(error, HostError):
                raise HostError(f"{error}\n--- console ---\n{console}") from error
            raise
        _write_json(scratch / "host.json", host)
    return host


def stop(name: str) -> None:
    """Powers the host off, by force if need be, and removes everything of it. Not running is fine."""
    scratch = scratch_of(name)
    if not scratch.is_dir():
        return
    with _locked(name):
        host = booted(name)
        if host is not None and host.init.alive():
            _power_off(host)
        _dispose(name, scratch)


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    """One boot or stop of a name at a time; the lock file lies beside the scratch folders, not in them."""
    path = cache() / "hosts" / f".{name}.lock"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        path.unlink(missing_ok=True)


def _refuse_or_clear(name: str, scratch: Path) -> None:
    old = booted(name)
    if old is not None and old.init.alive():
        raise HostError(f"host {name}: runs already (leader {old.leader}); stop it with: tests/host/boot stop {name}")
    _dispose(name, scratch)
    scratch.mkdir(parents=True)


def _boot(name: str, base: Path, scratch: Path, binds: tuple[str, ...], binds_ro: tuple[str, ...]) -> Booted:
    _lay_out(name, scratch)
    with _notify_socket(name) as (ready, address):
        nspawn = _start_nspawn(name, base, scratch, address, binds, binds_ro)
        leader = _wait_ready(name, ready, nspawn)
    cgroup = _host_cgroup(nspawn)
    (cgroup / "payload" / "exec").mkdir(exist_ok=True)
    host = Booted(
        name=name,
        leader=leader,
        leader_start=start_time(leader),
        nspawn=nspawn,
        nspawn_start=start_time(nspawn),
        cgroup=str(cgroup),
        tree=str(base),
        scratch=str(scratch),
        state="starting",
    )
    return replace(host, state=_system_state(host))


def _lay_out(name: str, scratch: Path) -> None:
    for folder in ("upper", "work", "root", "cleat", "containers"):
        (scratch / folder).mkdir()
    units = scratch / "upper/etc/systemd/system"
    units.mkdir(parents=True)
    for unit in MASKED_IN_NSPAWN:
        (units / unit).symlink_to("/dev/null")
    # A fixed id: an empty file would make this a first boot, with presets and questions.
    (scratch / "upper/etc/machine-id").write_text(os.urandom(16).hex() + "\n", encoding="ascii")
    (scratch / "upper/etc/hostname").write_text(name + "\n", encoding="ascii")
    (scratch / "upper/etc/hosts").write_text(f"127.0.0.1 localhost {name}\n::1 localhost\n", encoding="ascii")


@contextlib.contextmanager
def _notify_socket(name: str) -> Iterator[tuple[socket.socket, str]]:
    address = f"cleat-host-{name}-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind("\0" + address)
        yield ready, "@" + address


def _start_nspawn(
    name: str, base: Path, scratch: Path, notify: str, binds: tuple[str, ...], binds_ro: tuple[str, ...]
) -> int:
    """Starts it in the background, as a child of nobody here; its pid."""
    nspawn = [
        "systemd-nspawn", "--quiet", "--boot", f"--directory={scratch}/root", f"--machine={name}",
        "--register=no", "--keep-unit", "--notify-ready=yes", "--console=passive", "--link-journal=no",
        "--resolv-conf=off", "--timezone=off", "--private-network", "--capability=all",
        "--bind=/dev/fuse", "--bind=/dev/net/tun",
        f"--bind={scratch}/cleat:/var/lib/cleat", f"--bind={scratch}/containers:/var/lib/containers",
        *(f"--bind={bind}" for bind in binds), *(f"--bind-ro={bind}" for bind in binds_ro),
    ]  # fmt: skip
    overlay = f"lowerdir={base},upperdir={scratch}/upper,workdir={scratch}/work"
    # The mounts are made in a namespace of their own and go away with its last process.
    mount = 'mount -t overlay cleat-host "$1/root" -o "$2" && shift 2 && exec "$@"'
    private = ["unshare", "--mount", "--propagation=private"]
    command = [*private, "sh", "-ec", mount, "sh", str(scratch), overlay, *nspawn]
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
        "SYSTEMD_SECCOMP": "0",
        "NOTIFY_SOCKET": notify,
    }
    detach = 'log=$1; shift; setsid "$@" </dev/null >"$log" 2>&1 & echo $!'
    argv = ["sh", "-c", detach, "sh", str(scratch / "console.log"), *_in_own_cgroup(name, command)]
    return int(subprocess.run(argv, stdout=subprocess.PIPE, env=environment, cwd="/", check=True).stdout)


def _in_own_cgroup(name: str, command: list[str]) -> list[str]:
    """`command`, started in this host's own cgroup: a delegated scope where systemd rules the machine."""
    if Path("/run/systemd/system").is_dir():
        unit = f"cleat-host-{name}"
        scope = ["--quiet", "--scope", f"--unit={unit}", "--property=Delegate=yes", "--collect"]
        return ["systemd-run", *scope, *command]
    cgroup = _unified_mount() / _own_cgroup(os.getpid()) / f"cleat-host-{name}"
    cgroup.mkdir(exist_ok=True)
    return ["sh", "-c", JOIN_CGROUP, "sh", str(cgroup), *command]


def _cgroup_mounts() -> list[tuple[str, Path]]:
    """(file system type, mount point) of every cgroup hierarchy, from proc_pid_mountinfo(5)."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        left, _, right = line.partition(" - ")
        kind = right.split()[0]
        if kind in ("cgroup", "cgroup2"):
            found.append((kind, Path(left.split()[4])))
    return found


def _unified_mount() -> Path:
    for kind, path in _cgroup_mounts():
        if kind == "cgroup2":
            return path
    raise HostError("no cgroup2 file system is mounted on this machine; mount one at /sys/fs/cgroup")


def _own_cgroup(pid: int) -> str:
    for line in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines():
        if line.startswith("0::/"):
            return line.removeprefix("0::/")
    raise HostError(f"process {pid} is in no cgroup2 hierarchy")


def _host_cgroup(nspawn: int) -> Path:
    """Where nspawn was started; it moves itself to `supervisor` and its payload to `payload` below."""
    return _unified_mount() / _own_cgroup(nspawn).removesuffix("/supervisor")


def _wait_ready(name: str, ready: socket.socket, nspawn: int) -> int:
    """The leader's pid, once the host's systemd has said READY=1 (sd_notify(3); nspawn passes it on)."""
    deadline = time.monotonic() + BOOT_SEC
    leader = None
    while (left := deadline - time.monotonic()) > 0:
        if not readable_or_ended(ready, nspawn, left):
            raise HostError(f"host {name}: systemd-nspawn ended before the host was up")
        for line in _received(ready):
            if line.startswith("X_NSPAWN_LEADER_PID="):
                leader = int(line.partition("=")[2])
            if line == "READY=1" and leader is not None:
                return leader
    raise HostError(f"host {name}: not up after {BOOT_SEC:.0f} s")


def _received(ready: socket.socket) -> list[str]:
    try:
        return ready.recv(4096, socket.MSG_DONTWAIT).decode(errors="replace").splitlines()
    except BlockingIOError:
        return []


def _system_state(host: Booted) -> str:
    argv = ["timeout", str(int(BOOT_SEC)), "systemctl", "is-system-running", "--wait"]
    done = _inside(host, argv)
    state = done.stdout.decode().strip()
    if state not in ("running", "degraded"):
        said = state or done.stderr.decode().strip()
        raise HostError(f"host {host.name}: systemctl is-system-running says {said!r}")
    return state


def _inside(host: Booted, argv: list[str]) -> subprocess.CompletedProcess[bytes]:
    command = host.command(argv, fork=False)
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def _power_off(host: Booted) -> None:
    argv = ["timeout", "10", "systemctl", "poweroff", "--no-wall"]
    _inside(host, argv)
    host.supervisor.wait(STOP_SEC)


def _dispose(name: str, scratch: Path) -> None:
    host = booted(name)
    if host is not None:
        host.supervisor.kill()
        host.init.kill()
    for _, mount in _cgroup_mounts():
        for folder in _host_cgroups(name, mount):
            _empty_cgroup(folder)
    shutil.rmtree(scratch, ignore_errors=True)
    if scratch.exists():
        shutil.rmtree(scratch)


def _host_cgroups(name: str, mount: Path) -> list[Path]:
    """This host's cgroup in one hierarchy: below the caller's own, or below systemd's slice for scopes."""
    places = [mount, mount / _own_cgroup(os.getpid()), mount / "system.slice"]
    names = [f"cleat-host-{name}", f"cleat-host-{name}.scope"]
    return [place / leaf for place in dict.fromkeys(places) for leaf in names if (place / leaf).is_dir()]


def _empty_cgroup(folder: Path) -> None:
    """Kills what is left in it (cgroup.kill of the unified hierarchy), waits for that, and removes it."""
    if (folder / "cgroup.kill").exists():
        (folder / "cgroup.kill").write_text("1", encoding="ascii")
        _wait_unpopulated(folder)
    for sub in sorted((p for p in folder.rglob("*") if p.is_dir()), key=lambda p: -len(p.parts)):
        with contextlib.suppress(OSError):
            sub.rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _wait_unpopulated(folder: Path) -> None:
    deadline = time.monotonic() + STOP_SEC
    with (folder / "cgroup.events").open(encoding="ascii") as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while "populated 1" in events.read() and (left := deadline - time.monotonic()) > 0:
            poll.poll(left * 1000)
            events.seek(0)


def _write_json(path: Path, host: Booted) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(host), indent=1) + "\n", encoding="utf-8")
    part.replace(path)
