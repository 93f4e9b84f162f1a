# SPDX-License-Identifier: Apache-2.0
"""Four ways to start the same containers: a bare loop, podman, Quadlet, cleat. Each cleans up after itself."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from glob import glob
from typing import Any

from tests.bench.measure import Figures, measured, quiet, read, run, write

ROOT = "/srv/bench"
PROGRAM = ["/bin/sleep", "1000000"]
DEFINITIONS = "/etc/cleat/containers"
QUADLETS = "/etc/containers/systemd"
FLOOR = "/run/bench-floor"
SPEC = "/var/tmp/bench/config.json"
Spec = dict[str, Any]


def both_sides(names: list[str], width: int, one: Callable[[str], None]) -> None:
    """Calls `one` for every name, `width` at a time."""
    todo, lock, failures = iter(names), threading.Lock(), []

    def work() -> None:
        while True:
            with lock:
                name = next(todo, None)
            if name is None:
                return
            try:
                one(name)
            except BaseException as e:
                failures.append(e)
                raise

    workers = [threading.Thread(target=work) for _ in range(width)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise SystemExit(f"a start failed: {failures[0]}")


# The floor: conmon, crun create, crun start; no scope, no overlay, nothing resident


def cleat_spec() -> Spec:
    """The config.json that cleat makes, without what lies in its own folders."""
    if not os.path.exists(SPEC):
        cleat_definitions(["spec"])
        cleat_reload()
        (path,) = glob("/run/cleat/b/*/config.json")
        shutil.copy(path, SPEC)
        cleat_clear()
    spec: Spec = json.loads(read(SPEC))
    spec["root"] = {"path": ROOT, "readonly": False}
    spec["mounts"] = [mount for mount in spec["mounts"] if "/run/cleat" not in mount.get("source", "")]
    return spec


def minimal_spec() -> Spec:
    """What `crun spec` writes, on the host's network: no seccomp, few mounts."""
    os.makedirs(FLOOR, exist_ok=True)
    run("crun", "spec", "-f", f"{FLOOR}/config.json")
    spec: Spec = json.loads(read(f"{FLOOR}/config.json"))
    spec["root"] = {"path": ROOT, "readonly": False}
    spec["process"] |= {"terminal": False, "args": PROGRAM}
    spaces = spec["linux"]["namespaces"]
    spec["linux"]["namespaces"] = [space for space in spaces if space["type"] not in ("network", "cgroup")]
    return spec


def floor(count: int, *, minimal: bool = False) -> Figures:
    spec = minimal_spec() if minimal else cleat_spec()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    names = [f"{i:064x}" for i in range(count)]
    with measured(count) as figures:
        both_sides(names, 2, lambda name: _floor_start(name, spec, null))
    os.close(null)
    _floor_clear(names)
    return figures


def _floor_start(name: str, spec: Spec, null: int) -> None:
    bundle = f"{FLOOR}/{name}"
    os.makedirs(f"{bundle}/exit")
    os.mkdir(f"{bundle}/persist")
    own = copy.deepcopy(spec)
    own["linux"]["cgroupsPath"] = f"/system.slice/bench-floor/{name}"
    write(f"{bundle}/config.json", json.dumps(own))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    runtime = [f"--root={FLOOR}/runtime", "--log-format=json", f"--log={bundle}/oci-log"]
    argv = [
        "conmon", "--api-version", "-c", name, "-u", name, "-n", name[-6:], "-r", "/usr/bin/crun", "-b", bundle,
        "-p", f"{bundle}/pidfile", "--conmon-pidfile", f"{bundle}/conmon.pid", "--exit-dir", f"{bundle}/exit",
        "--persist-dir", f"{bundle}/persist", "--full-attach", "--log-level", "error", "--syslog", "-l", "journald",
        *(f"--runtime-arg={argument}" for argument in runtime),
    ]  # fmt: skip
    fds = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1)] + [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)]
    environment = {"PATH": "/usr/bin:/bin", "_OCI_SYNCPIPE": "3"}
    _wait_done(os.posix_spawn("/usr/bin/conmon", argv, environment, file_actions=fds), "conmon")
    theirs.close()
    created = json.loads(ours.recv(65536).strip(b"\0\n"))
    ours.close()
    if created["data"] <= 0:
        raise SystemExit(f"crun create: {created}")
    start = ["crun", f"--root={FLOOR}/runtime", "start", name]
    _wait_done(os.posix_spawn("/usr/bin/crun", start, {"PATH": "/usr/bin:/bin"}), "crun start")


def _wait_done(pid: int, what: str) -> None:
    if os.waitpid(pid, 0)[1]:
        raise SystemExit(f"{what} failed")


def _floor_clear(names: list[str]) -> None:
    for name in names:
        os.kill(int(read(f"{FLOOR}/{name}/pidfile")), signal.SIGKILL)
    quiet()
    shutil.rmtree(FLOOR)
    group = "/sys/fs/cgroup/system.slice/bench-floor"
    for folder, _, _ in os.walk(group, topdown=False):
        os.rmdir(folder)


# podman


def podman(count: int) -> Figures:
    names = [f"bench-{i}" for i in range(count)]
    with measured(count) as figures:
        both_sides(names, 4, _podman_run)
    figures["processor_after_ms"] = quiet() / count
    run("podman", "rm", "--force", "--all", "--time=0")
    quiet()
    return figures


def _podman_run(name: str) -> None:
    options = ["--pids-limit=0", "--log-driver=journald", "--network=host", "--rootfs", f"{ROOT}:O"]
    run("podman", "run", "--detach", "--name", name, *options, *PROGRAM)


# Quadlet


def quadlets(count: int) -> list[str]:
    for i in range(count):
        lines = ["[Container]", f"Rootfs={ROOT}:O", f"Exec={' '.join(PROGRAM)}", "Network=host", "LogDriver=journald"]
        write(f"{QUADLETS}/bench{i}.container", "\n".join([*lines, "PidsLimit=0", ""]))
    return [f"bench{i}.service" for i in range(count)]


def quadlet(count: int) -> Figures:
    units = quadlets(count)
    with measured(count) as reload:
        run("systemctl", "daemon-reload")
    with measured(count) as figures:
        run("systemctl", "start", *units)
    figures["daemon_reload_ms"] = reload["wall_ms"] * count
    figures["processor_ms"] += reload["processor_ms"]
    figures["wall_ms"] += reload["wall_ms"]
    figures["processor_after_ms"] = quiet() / count
    run("systemctl", "kill", "--signal=KILL", *units, check=False)
    run("systemctl", "stop", *units, check=False)
    quadlet_clear()
    return figures


def quadlet_clear() -> None:
    shutil.rmtree(QUADLETS, ignore_errors=True)
    run("systemctl", "daemon-reload")
    run("systemctl", "reset-failed")
    run("podman", "rm", "--force", "--all", "--time=0")
    quiet()


# cleat


def cleat_definitions(names: list[str], extra: str = "") -> None:
    text = f"rootfs = {json.dumps(ROOT)}\ncommand = {json.dumps(PROGRAM)}\n{extra}"
    for name in names:
        write(f"{DEFINITIONS}/{name}.toml", text)


def cleat_names(count: int) -> list[str]:
    return [f"bench{i}" for i in range(count)]


def cleat_status() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("cleat", "status", "--json"))
    return found


def cleat_reload(count: int = 0) -> None:
    """The way of an admin; with `count`, until so many are reported ready."""
    run("systemctl", "reload", "cleat.service")
    deadline = time.monotonic() + 120
    while count and sum(one["ready"] for one in cleat_status()) < count:
        if time.monotonic() > deadline:
            raise SystemExit(f"not all ready: {run('cleat', 'status')[:2000]}")


def cleat(count: int) -> Figures:
    cleat_definitions(cleat_names(count))
    with measured(count) as figures:
        cleat_reload(count)
    figures["processor_after_ms"] = quiet() / count
    cleat_clear()
    return figures


def cleat_clear() -> None:
    shutil.rmtree(DEFINITIONS, ignore_errors=True)
    os.makedirs(DEFINITIONS)
    subprocess.run(["cleat", "kill", "--signal", "KILL", "--all"], capture_output=True, check=False)
    run("systemctl", "kill", "--signal=KILL", "cleat-bench*.scope", check=False)
    run("systemctl", "reload", "cleat.service")
    quiet()
    run("systemctl", "reset-failed")
