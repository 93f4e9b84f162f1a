# SPDX-License-Identifier: Apache-2.0
"""The ground of the VM tier: a kernel of its own, every cgroup controller. Needs no cleat package."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.host.hosts import Host


def test_systemd_is_up(bare_vm: Host) -> None:
    assert bare_vm.run(["systemctl", "is-system-running"]).stdout.strip() == "running"
    assert bare_vm.run("systemd-detect-virt").stdout.strip() in ("qemu", "kvm")


def test_controllers_are_there(bare_vm: Host) -> None:
    have = set(bare_vm.read("/sys/fs/cgroup/cgroup.controllers").split())
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= have


def test_limits_hold(bare_vm: Host) -> None:
    limits = ["-p", "MemoryMax=64M", "-p", "MemorySwapMax=0", "-p", "TasksMax=20"]
    probe = "cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/memory.max; head -c 200m /dev/zero | tail"
    result = bare_vm.run(["systemd-run", "--wait", "--pipe", "--collect", *limits, "sh", "-c", probe], check=False)
    assert result.stdout.split()[0] == str(64 << 20)
    assert result.returncode != 0
    bare_vm.wait_journal("_TRANSPORT=kernel", since="", where=lambda entry: "oom-kill" in entry["MESSAGE"])


def test_criu_works(bare_vm: Host) -> None:
    assert "Looks good" in bare_vm.run(["criu", "check"], timeout=60).stdout
