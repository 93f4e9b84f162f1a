# SPDX-License-Identifier: Apache-2.0
"""/var/lib/cleat on the file systems that hosts have: roots, volumes and shifted owners are the same on each."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import registry
from tests.host.hosts import Host
from tests.host.nspawn import Booted
from tests.host.registry import QUICK, definition, make
from tests.host.test_volumes import mount

STATE = "/var/lib/cleat"
# mkfs.xfs makes none below 300 MiB. What is not written takes no space.
SIZE = 400 << 20
SUBORDINATE = ("/etc/subuid", "/etc/subgid")
RANGES = "containers:200000:1048576"
LOOP_NODES = "[ -e /dev/loop-control ] || mknod /dev/loop-control c 10 237; " + "".join(
    f"[ -e /dev/loop{i} ] || mknod /dev/loop{i} b 7 {i}; " for i in range(16)
)

ENTRIES: list[registry.Entry] = [
    {"name": "data/", "dir": True, "uid": 33, "gid": 33, "mode": 0o750},
    {"name": "data/seed", "text": "x", "uid": 33, "mode": 0o600, "xattrs": {"user.colour": "blue"}},
    {"name": "old/", "dir": True},
    {"name": "old/file", "text": "x"},
    {"name": "gone", "text": "x"},
]
# A whiteout, a renamed folder, a copied-up one.
CHANGES = "rm /gone && mv /old /new && ls /new && echo y >/bin/own && chown 33 /bin/own && stat -c %u /bin /bin/own"


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def disk(request: pytest.FixtureRequest, clean: Host) -> Iterator[Host]:
    """The host with a fresh file system for the agent's state, gone again afterwards."""
    kind = str(request.param)
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"needs mkfs.{kind} on this machine")
    if f"\t{kind}\n" not in Path("/proc/filesystems").read_text(encoding="ascii"):
        pytest.skip(f"this kernel has no {kind}, or has not loaded it: modprobe {kind}")
    assert isinstance(clean.machine, Booted)
    with contextlib.ExitStack() as undo:
        image = Path(clean.machine.scratch, "containers", "disk.img")
        image.touch()
        undo.callback(image.unlink)
        os.truncate(image, SIZE)
        subprocess.run([f"mkfs.{kind}", "-q", image], check=True, stdin=subprocess.DEVNULL)
        clean.run(LOOP_NODES + "".join(f"cp -a {path} {path}.kept; echo {RANGES} >{path}; " for path in SUBORDINATE))
        undo.callback(clean.run, "; ".join(f"mv {path}.kept {path}" for path in SUBORDINATE))
        undo.callback(clean.run, ["systemctl", "start", "cleat.service"], timeout=60)
        clean.run(["systemctl", "stop", "cleat.service"])
        clean.run(["mount", "-o", "loop", "/var/lib/containers/disk.img", STATE])
        undo.callback(clean.run, ["umount", STATE])
        assert clean.run(["stat", "-f", "-c", "%T", STATE]).stdout.startswith(kind[:3])
        clean.run(["systemctl", "start", "cleat.service"], timeout=60)
        undo.callback(clean.run, ["systemctl", "stop", "cleat.service"])
        undo.callback(clean.run, "rm -f /etc/cleat/containers/*.toml; cleat stop --all --time 0; cleat reload-agent")
        yield clean


def inside(host: Host, name: str, script: str) -> list[str]:
    return host.cleat("exec", name, "--", "sh", "-c", f"{{ {script}; }} 2>&1").stdout.split()


def define(host: Host, name: str, toml: str) -> None:
    """`name` on the host's ids, and `name`-auto on some of its own."""
    for suffix, namespace in (("", "host"), ("-auto", "auto")):
        host.definition(f"{name}{suffix}", f'{toml}\n[security]\nuser_namespace = "{namespace}"\n')


def test_roots(disk: Host) -> None:
    define(disk, "image", definition(make(disk, "fs", ENTRIES)))
    same, other = f"{STATE}/root", disk.rootfs("fs")
    disk.run(f"cp -a {other} {same}; for i in {same} {other}; do mkdir -p $i/old; touch $i/old/file $i/gone; done")
    for name, place in (("same", same), ("other", other)):
        define(disk, name, f'rootfs = "{place}"\ncommand = ["/bin/sleep", "1000"]\n{QUICK}')
    disk.reload()
    for name in ("image", "image-auto", "same", "same-auto", "other"):
        assert inside(disk, name, CHANGES) == ["file", "0", "33"], name
        disk.cleat("restart", name)
        assert inside(disk, name, "ls -d /gone /old /new /bin/own; true").count("No") == 2, name
    # The tree of a test host is an overlay itself, which no kernel shifts.
    assert "cannot shift the owners" in disk.status("other-auto")["error"]


def test_a_volume_is_filled(disk: Host) -> None:
    kept = mount(type="volume", source="kept", target="/data")
    define(disk, "c", definition(make(disk, "fs", ENTRIES)) + kept)
    disk.reload()
    for name, first in (("c", "0"), ("c-auto", "200000")):
        script = f"echo z >/data/{name}; stat -c '%u %g %a' /data /data/seed /data/{name}"
        assert inside(disk, name, script) == ["33", "33", "750", "33", "0", "600", "0", "0", "644"]
        assert disk.run(["stat", "-c", "%u", f"/proc/{disk.status(name)['pid']}"]).stdout.strip() == first
    data = f"{STATE}/volumes/kept/_data"
    assert disk.run(f"stat -c %u {data}/seed {data}/c {data}/c-auto").stdout.split() == ["33", "0", "0"]
    script = f"import os; print(os.getxattr('{data}/seed', 'user.colour').decode())"
    assert disk.run(["python3", "-c", script]).stdout == "blue\n"
