# SPDX-License-Identifier: Apache-2.0
"""Nothing is left: counted before and after many lives of containers, good and bad ones."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.host import samples

if TYPE_CHECKING:
    from tests.host.hosts import Host

ROUNDS = 10
SETTLE_SEC = 15.0
COUNT = r"""
pid=$(systemctl show --property=MainPID --value cleat.service)
executor=$(systemctl show --property=MainPID --value cleat-executor.service)
echo "fds $(ls /proc/$pid/fd | wc -l)"
echo "threads $(ls /proc/$pid/task | wc -l)"
echo "children $(pgrep -c -P $pid)"
echo "executor $(ls /proc/$executor/fd | wc -l) $(pgrep -c -P $executor) $(wc -l </proc/$executor/mountinfo)"
echo "scopes $(systemctl list-units --all --plain --no-legend 'cleat-*.scope' | wc -l)"
echo "cgroups $(find /sys/fs/cgroup/cleat.slice -type d 2>/dev/null | wc -l)"
echo "mounts $(wc -l </proc/1/mountinfo) $(wc -l </proc/$pid/mountinfo)"
echo "run $(find /run/cleat | wc -l)"
echo "state $(find /var/lib/cleat -not -path '*/volumes*' | wc -l)"
echo "transient $(ls /run/systemd/transient | wc -l)"
echo "conmons $(pgrep -c -x conmon) zombies $(ps -e -o stat= | grep -c Z)"
"""


Counts = dict[str, list[int]]


def counts(host: Host) -> Counts:
    lines = host.run(COUNT).stdout.splitlines()
    return {line.split()[0]: [int(word) for word in line.split() if word.isdigit()] for line in lines}


def grown(host: Host, before: Counts) -> dict[str, tuple[list[int], list[int]]]:
    """What is more than before, given some time: systemd unloads units when it has nothing better to do."""
    deadline = time.monotonic() + SETTLE_SEC
    while True:
        now = counts(host)
        more = {name: (before[name], now[name]) for name in now if any(map(int.__gt__, now[name], before[name]))}
        if not more or time.monotonic() > deadline:
            return more
        host.run(["systemctl", "reset-failed"])


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
