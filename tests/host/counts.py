# SPDX-License-Identifier: Apache-2.0
"""What there is on a host that containers may leave behind, counted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.host.hosts import Host

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
