# SPDX-License-Identifier: Apache-2.0
"""Limits under a kernel with every controller: they hold, they change live, and who broke one is told so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.host import samples
from tests.host.counts import counts, grown

if TYPE_CHECKING:
    from tests.host.hosts import Host

GROUP = "/sys/fs/cgroup/cleat.slice/cleat-web.scope"
HOG = "x=a; while :; do x=$x$x; done"


def limited(resources: str, script: str = samples.SERVICE, service: str = "") -> str:
    return samples.definition(script, tables=f"[service]\n{service}\n[resources]\n{resources}")


def test_limits_are_on_the_scope_and_hold_below_it(clean: Host) -> None:
    samples.run(clean, web=limited('memory_max = "64M"\ntasks_max = 20\ncpu_quota = "50%"\ncpu_weight = 30\n'))
    shown = clean.unit("cleat-web.scope", "MemoryMax", "TasksMax", "CPUQuotaPerSecUSec", "CPUWeight")
    assert shown == {"MemoryMax": str(64 << 20), "TasksMax": "20", "CPUQuotaPerSecUSec": "500ms", "CPUWeight": "30"}
    assert clean.read(f"{GROUP}/memory.max").strip() == str(64 << 20)
    assert clean.read(f"{GROUP}/pids.max").strip() == "20"
    assert clean.read(f"{GROUP}/cpu.max").split()[0] != "max"
    pid = clean.status("web")["pid"]
    assert clean.read(f"/proc/{pid}/cgroup").strip().endswith("/cleat-web.scope/container")


def test_a_hog_is_killed_and_said_to_be_one(clean: Host) -> None:
    text = limited('memory_max = "32M"\nmemory_swap_max = 0\n', HOG, 'restart = "no"')
    samples.add(clean, web=text, good=samples.definition())
    clean.reload()
    entry = clean.wait_event("web", "oom", timeout=60)
    assert "memory" in entry["MESSAGE"]
    status = clean.status("web")
    assert (status["state"], status["oom_killed"], status["exit_code"]) == ("failed", True, 137)
    assert clean.status("good")["state"] == "running"
    assert "memory" in clean.cleat("status", "web", check=False).stdout


def test_a_hog_is_restarted_as_a_failure(clean: Host) -> None:
    text = limited('memory_max = "32M"\nmemory_swap_max = 0\n', HOG, 'restart = "on-failure"\nrestart_sec = "10min"')
    samples.add(clean, web=text)
    clean.reload()
    clean.wait_event("web", "oom", timeout=60)
    clean.wait_event("web", "backoff")
    assert clean.status("web")["state"] == "backoff"


def test_nothing_is_left_of_many_hogs(clean: Host) -> None:
    def hogs() -> None:
        text = limited('memory_max = "32M"\nmemory_swap_max = 0\n', HOG, 'restart = "no"')
        names = [f"hog{i}" for i in range(4)]
        samples.add(clean, **dict.fromkeys(names, text))
        since = clean.cursor()
        clean.reload()
        for name in names:
            clean.wait_event(name, "oom", timeout=60, since=since)
        clean.run("rm -f /etc/cleat/containers/*.toml")
        clean.reload()

    hogs()
    before = counts(clean)
    for _ in range(3):
        hogs()
    assert grown(clean, before) == {}
    assert samples.faults(clean) == []


def test_tasks_max(clean: Host) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 & done; echo all; wait"
    samples.add(clean, web=limited("tasks_max = 8\n", script, 'restart = "no"'))
    clean.reload()
    clean.wait_journal("CONTAINER_NAME=web", where=lambda e: "fork" in e["MESSAGE"])
    events = dict(line.split() for line in clean.read("/sys/fs/cgroup/cleat.slice/pids.events").splitlines())
    assert int(events["max"]) > 0


def test_cpu_quota(clean: Host) -> None:
    samples.run(clean, web=limited('cpu_quota = "10%"\n', "while :; do :; done"))
    read = f"awk '/nr_throttled/ {{ print $2 }}' {GROUP}/cpu.stat"
    clean.run(f"until [ $({read}) -ge 5 ]; do sleep 0.1; done", timeout=30)


def test_limits_change_live(clean: Host) -> None:
    samples.run(clean, web=limited('memory_max = "64M"\ntasks_max = 20\n'))
    before = samples.identity(clean, "web")
    samples.add(clean, web=limited('memory_max = "128M"\ncpu_weight = 50\n'))
    assert "update" in clean.cleat("plan").stdout
    clean.reload()
    assert samples.identity(clean, "web") == before
    assert clean.read(f"{GROUP}/memory.max").strip() == str(128 << 20)
    assert clean.read(f"{GROUP}/pids.max").strip() != "20"
    assert clean.unit("cleat-web.scope", "CPUWeight")["CPUWeight"] == "50"
    samples.agent_restarted(clean)
    assert samples.identity(clean, "web") == before
    samples.add(clean, web=limited("cpu_weight = 50\n"))
    clean.reload()
    assert samples.identity(clean, "web") == before
    assert clean.read(f"{GROUP}/memory.max").strip() == "max"


def test_without_limits_podmans_task_limit_holds(clean: Host) -> None:
    samples.run(clean, web=samples.definition())
    assert clean.read(f"{GROUP}/pids.max").strip() == "2048"
