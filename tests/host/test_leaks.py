# SPDX-License-Identifier: Apache-2.0
"""Nothing is left: counted before and after many lives of containers, good and bad ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.host import samples
from tests.host.counts import counts, grown

if TYPE_CHECKING:
    from tests.host.hosts import Host

ROUNDS = 10


def lives(host: Host) -> None:
    """A life of every kind: stopped, killed, ended, failed to start, restarted, refused, commands in it."""
    samples.add(
        host,
        good=samples.definition(),
        runc=samples.definition(tables='[runtime]\nname = "runc"\n'),
        ends=samples.service("exit 3", 'restart = "no"'),
        missing=samples.service("x", 'restart = "no"').replace("/bin/sh", "/bin/nosuch"),
        listens=samples.definition(tables='[[socket]]\nlisten_stream = "/run/leak.sock"\n'),
        tells=samples.service(samples.SERVICE, 'notify = "container"\ntimeout_start_sec = "200ms"\nrestart = "no"'),
        refused="comand = 1\n",
    )
    host.cleat("reload-agent", check=False)
    host.cleat("exec", "good", "--", "true")
    host.cleat("restart", "good")
    host.cleat("kill", "-s", "KILL", "runc")
    host.cleat("pause", "good")
    host.run("rm -f /etc/cleat/containers/*.toml")
    host.reload()


def test_nothing_is_left_of_many_lives(clean: Host) -> None:
    lives(clean)
    clean.run(["systemctl", "reset-failed"])
    before = counts(clean)
    for _ in range(ROUNDS):
        lives(clean)
    clean.run(["systemctl", "reset-failed"])
    assert clean.status() == []
    assert grown(clean, before) == {}
    assert samples.faults(clean) == []


FLAP = 'restart_sec = "0"\nrestart_steps = 0\n'
STOPS = r"""
import random, subprocess, sys, time

random.seed(1)
names = sys.argv[1:]
for _ in range(40):
    subprocess.run(["cleat", "start", *names], check=False, timeout=30)
    time.sleep(random.uniform(0.0, 0.1))
    subprocess.run(["cleat", "stop", *names], check=False, timeout=30)
"""


def test_nothing_is_left_of_starts_that_are_stopped_half_way(clean: Host) -> None:
    """Containers that end at once and start anew without a pause are stopped at any moment of that."""
    tables = {
        "plain": "",
        "runc": '[runtime]\nname = "runc"\n',
        "enabled": '[cgroup]\nmode = "enabled"\n',
        "shared": '[cgroup]\nmode = "no-conmon"\n',
        "bare": '[cgroup]\nmanager = "cgroupfs"\n',
    }
    clean.reload()
    before = counts(clean)
    samples.add(clean, **{name: samples.service("exit 1", FLAP + text) for name, text in tables.items()})
    clean.reload()
    clean.run(["python3", "-c", STOPS, *tables], timeout=120)
    clean.run("rm -f /etc/cleat/containers/*.toml")
    clean.reload()
    assert grown(clean, before) == {}
    assert samples.faults(clean) == []


def test_host_mounts_do_not_show_containers(clean: Host) -> None:
    before = clean.read("/proc/1/mountinfo")
    samples.run(clean, web=samples.definition())
    assert clean.read("/proc/1/mountinfo") == before


def test_memory_does_not_grow(clean: Host) -> None:
    def resident_kb() -> int:
        pid = clean.unit("cleat.service", "MainPID")["MainPID"]
        return int(clean.run(["sed", "-n", "s/^Pss: *\\([0-9]*\\).*/\\1/p", f"/proc/{pid}/smaps_rollup"]).stdout)

    samples.add(clean, flap=samples.service("exit 1", 'restart_sec = "0"\nrestart_steps = 0\n'))
    clean.reload()
    wait = "journalctl -f -n all -o cat CLEAT_CONTAINER=flap CLEAT_EVENT=started | head -n {} >/dev/null"
    clean.run(wait.format(50), timeout=60)
    before = resident_kb()
    clean.run(wait.format(400), timeout=120)
    assert resident_kb() < before + 1024
