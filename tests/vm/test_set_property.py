# SPDX-License-Identifier: Apache-2.0
"""`systemctl set-property` on a scope holds until the definition says something else."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.host.hosts import Host

TOML = 'rootfs = "/srv/bb"\ncommand = ["/bin/sleep", "infinity"]\n'


def memory_max(vm: Host) -> tuple[str, int]:
    group = vm.unit("cleat-web.scope", "ControlGroup")["ControlGroup"]
    told = vm.unit("cleat-web.scope", "MemoryMax")["MemoryMax"]
    return told, int(vm.read(f"/sys/fs/cgroup{group}/memory.max"))


def test_a_limit_by_hand_holds(clean: Host) -> None:
    clean.rootfs("bb")
    clean.definition("web", TOML + '[resources]\nmemory_max = "64M"\n')
    clean.reload()
    assert memory_max(clean) == (str(64 << 20), 64 << 20)
    pid = clean.status("web")["pid"]
    clean.run(["systemctl", "set-property", "--runtime", "cleat-web.scope", "MemoryMax=48M"])
    clean.reload()
    assert memory_max(clean) == (str(48 << 20), 48 << 20)
    clean.definition("web", TOML + 'description = "changed"\n[resources]\nmemory_max = "64M"\n')
    clean.reload()
    assert memory_max(clean) == (str(48 << 20), 48 << 20)
    clean.definition("web", TOML + '[resources]\nmemory_max = "80M"\n')
    clean.reload()
    assert memory_max(clean) == (str(80 << 20), 80 << 20)
    assert clean.status("web")["pid"] == pid
    clean.run("rm -rf /run/systemd/system.control/cleat-web.scope.d")
