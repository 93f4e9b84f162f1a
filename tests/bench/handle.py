#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What cleat@NAME.service costs: CPU milliseconds per container, with its handle and without. handle.py [COUNT]

Starts COUNT containers (100) on a private host, once with the template masked. Counted is what PID 1, the bus, the
journal and the agent used, with all the children that they have waited for: the handle's shell and the runtime among
them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
sys.dont_write_bytecode = True

from tests.host import nspawn  # noqa: E402
from tests.host.hosts import Host, build_package  # noqa: E402

SERVICES = ("dbus", "systemd-journald", "cleat")
DEFINITION = 'rootfs = "/srv/bb"\nautostart = false\ncommand = ["/bin/sleep", "infinity"]\n'


def used_msec(host: Host) -> float:
    """utime, stime, cutime and cstime of proc_pid_stat(5), which are in ticks."""
    pids = [1] + [int(host.unit(f"{name}.service", "MainPID")["MainPID"]) for name in SERVICES]
    stats = host.run(["cat", *(f"/proc/{pid}/stat" for pid in pids)]).stdout.splitlines()
    ticks = sum(sum(map(int, line.rpartition(")")[2].split()[11:15])) for line in stats)
    return ticks * 1000 / os.sysconf("SC_CLK_TCK")


def wait_for_handles(host: Host, count: int, since: str) -> None:
    seen: set[str] = set()

    def is_last(entry: dict[str, str]) -> bool:
        seen.add(entry["UNIT"])
        return len({unit for unit in seen if unit.startswith("cleat@")}) == count

    host.wait_journal("MESSAGE_ID=39f53479d3a045ac8e11786248231fbf", since=since, where=is_last, timeout=120)


def measure(host: Host, count: int, *, with_handles: bool) -> float:
    verb = "unmask" if with_handles else "mask"
    host.run(["systemctl", verb, "--runtime", "cleat@.service"])
    names = [f"c{i}" for i in range(count)]
    mark, before = host.cursor(), used_msec(host)
    host.cleat("start", *names, timeout=120)
    if with_handles:
        wait_for_handles(host, count, mark)
    used = used_msec(host) - before
    host.cleat("stop", "-t", "0", *names, timeout=120)
    return used / count


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    name = f"bench-handle-{os.getpid()}"
    try:
        host = Host(nspawn.boot(name))
        host.install(build_package())
        host.rootfs("bb")
        for i in range(count):
            host.definition(f"c{i}", DEFINITION)
        host.run(["systemctl", "start", "cleat"])
        measure(host, count, with_handles=False)  # everything is in the page cache then
        without = measure(host, count, with_handles=False)
        whole = measure(host, count, with_handles=True)
    finally:
        nspawn.stop(name)
    print(f"{count} containers, CPU ms each: {without:.1f} without a handle, {whole:.1f} with one")
    print(f"a handle costs {whole - without:.1f} ms")


if __name__ == "__main__":
    main()
