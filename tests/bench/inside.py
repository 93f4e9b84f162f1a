# SPDX-License-Identifier: Apache-2.0
"""Runs in the test host: one part of the benchmark per call, figures as JSON on stdout. See tests/bench/run."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.bench import contestants as by
from tests.bench.measure import (
    Figures,
    agent_pid,
    cursor,
    journal,
    median,
    median_ms,
    proportional_set_kb,
    quiet,
    read,
    run,
    unit_property,
    wakeups,
    write,
)

TRACE = "/run/bench.trace"
SERVER_ROOT = "/srv/bench-server"


def start(who: str, count: int) -> Figures:
    """`count` containers started by one contestant."""
    match who:
        case "floor":
            return by.floor(count)
        case "floor-minimal":
            return by.floor(count, minimal=True)
        case "podman":
            return by.podman(count)
        case "quadlet":
            return by.quadlet(count)
        case _:
            return by.cleat(count)


def reload(count: int, times: int) -> Figures:
    """Reading unchanged definitions again, against daemon-reload with as many Quadlets."""
    by.cleat_definitions(by.cleat_names(count), "autostart = false\n")
    by.cleat_reload()
    figures = {"cleat_ms": median_ms(times, lambda: run("systemctl", "reload", "cleat.service"))}
    by.cleat_clear()
    figures["daemon_reload_without_ms"] = median_ms(times, lambda: run("systemctl", "daemon-reload"))
    by.quadlets(count)
    figures["daemon_reload_ms"] = median_ms(times, lambda: run("systemctl", "daemon-reload"))
    by.quadlet_clear()
    return figures


def resident(count: int, times: int, idle_sec: float) -> Figures:
    """The agent with `count` containers: memory, wake-ups, how soon it has them again after kill -9."""
    by.cleat_definitions(by.cleat_names(count))
    by.cleat_reload(count)
    quiet()
    figures: Figures = {"pss_kb": proportional_set_kb(agent_pid())}
    figures |= _idle(idle_sec) if idle_sec else {}
    if count <= 100:
        run("podman", "run", "--detach", "--pids-limit=0", "--network=host", "--rootfs", f"{by.ROOT}:O", *by.PROGRAM)
        figures["status_ms"] = median_ms(10, lambda: run("cleat", "status"))
        figures["podman_ps_ms"] = median_ms(10, lambda: run("podman", "ps"))
        run("podman", "rm", "--force", "--all", "--time=0")
    before = {one["name"]: (one["id"], one["pid"], one["restarts"]) for one in by.cleat_status()}
    adopted = [_killed() for _ in range(times)]
    after = {one["name"]: (one["id"], one["pid"], one["restarts"]) for one in by.cleat_status()}
    if before != after:
        raise SystemExit(f"not all were taken over as they were: {set(before.items()) ^ set(after.items())}")
    figures["adopt_ms"] = median([one["program"] for one in adopted])
    figures["kill_to_adopted_ms"] = median([one["kill"] for one in adopted])
    quiet()
    figures["pss_adopted_kb"] = proportional_set_kb(agent_pid())
    by.cleat_clear()
    return figures


def _idle(seconds: float) -> Figures:
    pid = agent_pid()
    before, processor = wakeups(pid), read(f"/proc/{pid}/schedstat").split()[0]
    time.sleep(seconds)
    used = (int(read(f"/proc/{pid}/schedstat").split()[0]) - int(processor)) / 1e6
    return {"idle_sec": seconds, "idle_wakeups": wakeups(pid) - before, "idle_processor_ms": used}


def _killed() -> Figures:
    """kill -9 of the agent: ms until its successor has said that it started, from the kill and from its own exec."""
    since, killed = cursor(), time.clock_gettime(time.CLOCK_MONOTONIC)
    run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "cleat.service")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = journal("CLEAT_EVENT=agent-started", since=since)
        if found:
            said = int(found[0].get("_SOURCE_MONOTONIC_TIMESTAMP") or found[0]["__MONOTONIC_TIMESTAMP"]) / 1e3
            began = int(unit_property("cleat.service", "ExecMainStartTimestampMonotonic")) / 1e3
            run("systemctl", "start", "cleat.service")
            return {"program": said - began, "kill": said - killed * 1e3}
    raise SystemExit("the agent did not come back")


def commands(times: int) -> Figures:
    """One container started by the command and by its handle; the first answer on demand."""
    by.cleat_definitions(["bench0"], "autostart = false\n[service]\ntimeout_stop_sec = 0\n")
    by.cleat_reload()
    figures = {
        "start_ms": median_ms(times, lambda: run("cleat", "start", "bench0"), lambda: _stopped("bench0")),
        "handle_ms": median_ms(times, lambda: run("systemctl", "start", "cleat@bench0"), lambda: _stopped("bench0")),
    }
    by.cleat_clear()
    figures["on_demand_ms"] = _on_demand(times)
    figures["quadlet_on_demand_ms"] = _quadlet_on_demand(times)
    return figures


def _stopped(name: str) -> None:
    run("cleat", "stop", name, check=False)
    run("systemctl", "stop", f"cleat@{name}")
    quiet()


# Takes the socket that is passed as fd 3, and answers.
SERVER = "import socket\ns = socket.socket(fileno=3)\nwhile True:\n c, _ = s.accept()\n c.sendall(b'up')\n c.close()\n"


def _first_answer(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        if client.recv(16) != b"up":
            raise SystemExit("no answer")


def _on_demand(times: int) -> float:
    write(f"{SERVER_ROOT}/server.py", SERVER)
    text = (
        f'rootfs = "{SERVER_ROOT}"\ncommand = ["/bin/python3", "-ISE", "/server.py"]\n'
        '[service]\ntimeout_stop_sec = 0\n[[socket]]\nlisten_stream = "127.0.0.1:9101"\non_demand = true\n'
    )
    write(f"{by.DEFINITIONS}/bench0.toml", text)
    by.cleat_reload()

    def again() -> None:
        run("cleat", "stop", "bench0")
        run("rm", "-f", f"{by.DEFINITIONS}/bench0.toml")
        by.cleat_reload()
        write(f"{by.DEFINITIONS}/bench0.toml", text)
        by.cleat_reload()
        quiet()

    found = median_ms(times, lambda: _first_answer(9101), again)
    by.cleat_clear()
    return found


def _quadlet_on_demand(times: int) -> float:
    server = "/bin/python3 -ISE /server.py"
    container = f"[Container]\nRootfs={SERVER_ROOT}:O\nExec={server}\nNetwork=host\nLogDriver=journald\nPidsLimit=0\n"
    write(f"{by.QUADLETS}/bench0.container", container + "[Service]\nTimeoutStopSec=1\n")
    write("/run/systemd/system/bench0.socket", "[Socket]\nListenStream=127.0.0.1:9102\n")
    run("systemctl", "daemon-reload")

    def again() -> None:
        run("systemctl", "stop", "bench0.socket", "bench0.service", check=False)
        run("systemctl", "reset-failed")
        run("systemctl", "start", "bench0.socket")
        quiet()

    found = median_ms(times, lambda: _first_answer(9102), again)
    run("systemctl", "stop", "bench0.socket", "bench0.service")
    os.unlink("/run/systemd/system/bench0.socket")
    by.quadlet_clear()
    return found


# Where the time of one start goes

STEPS: tuple[tuple[str, str], ...] = (
    ("read, plan, bundle", r"execve\(\"[^\"]*/conmon\""),
    ("conmon's program begins, scope asked for", r"send(to|msg)\(.*StartTransientUnit"),
    ("systemd makes the scope, supervisor/", r"write\(\d+, \"\\0\"|sendto\(\d+, \"\\0\""),
    ("conmon forks", r"execve\(\"[^\"]*/crun\""),
    ("crun create", r"execve\(\"[^\"]*\", \[\"[^\"]*/crun\".*\"start\""),
    ("crun start, ready", r"sendmsg\(.*CLEAT_EVENT=ready"),
)


def steps(times: int) -> Figures:
    """Times between steps of a start, one container at a time, under strace: the shares count, not the sums."""
    found: dict[str, list[float]] = {}
    with _traced(unit_property("cleat.service", "MainPID"), unit_property("cleat-executor.service", "MainPID")):
        for i in range(times + 1):
            name = f"bench{i}"
            by.cleat_definitions([name])
            quiet()
            began = time.time()
            by.cleat_reload(i + 1)
            if i:
                for step, spent in _steps_of(name, began).items():
                    found.setdefault(step, []).append(spent)
    by.cleat_clear()
    return {step: median(spent) for step, spent in found.items()}


@contextmanager
def _traced(*pids: str) -> Iterator[None]:
    """What these and their children say and execute, into TRACE."""
    calls = "trace=execve,sendmsg,sendto,write"
    argv = ["strace", "-f", "-qq", "-ttt", "-s", "4096", "-e", calls, "-o", TRACE]
    tracer = subprocess.Popen([*argv, *(word for pid in pids for word in ("-p", pid))])
    try:
        while tracer.poll() is None and any("TracerPid:\t0\n" in read(f"/proc/{pid}/status") for pid in pids):
            time.sleep(0.01)
        yield
    finally:
        tracer.terminate()
        tracer.wait(timeout=30)


def _steps_of(name: str, began: float) -> Figures:
    lines = [line.split(None, 2) for line in read(TRACE).splitlines()]
    rest = [(float(when), what) for _, when, what in lines if float(when) >= began]
    begin = next((when for when, what in rest if f'"{name}' in what or "execve" in what), began)
    figures: Figures = {"systemctl, signal": (begin - began) * 1000}
    last, position = begin, 0
    for step, pattern in STEPS:
        for i in range(position, len(rest)):
            if re.search(pattern, rest[i][1]):
                figures[step] = (rest[i][0] - last) * 1000
                last, position = rest[i][0], i + 1
                break
    return figures


def main() -> None:
    part, *rest = sys.argv[1:]
    numbers: list[Any] = [int(word) if word.isdigit() else word for word in rest]
    parts: dict[str, Callable[..., Figures]] = {
        "start": start,
        "reload": reload,
        "resident": resident,
        "commands": commands,
        "steps": steps,
    }
    json.dump(parts[part](*numbers), sys.stdout)


main()
