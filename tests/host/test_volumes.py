# SPDX-License-Identifier: Apache-2.0
"""Volumes and mounts: filled when new, kept, and never a way out of an image."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.host import registry
from tests.host.hosts import Host
from tests.host.registry import QUICK, Entry, definition, make

VOLUMES = "/var/lib/cleat/volumes"


@pytest.fixture
def volumes(clean: Host) -> Iterator[Host]:
    registry.forget(clean)
    yield clean
    clean.run("rm -f /etc/cleat/containers/*.toml; cleat reload-agent", check=False)
    registry.forget(clean)


def mount(**keys: str | bool | list[str]) -> str:
    return "\n[[mount]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())


def test_a_new_volume_is_filled_once(volumes: Host) -> None:
    entries: list[Entry] = [
        {"name": "data/", "dir": True, "uid": 33, "gid": 33, "mode": 0o2770},
        {"name": "data/seed", "text": "from the image", "uid": 33, "xattrs": {"user.colour": "blue"}},
        {"name": "data/link", "link": "/etc/shadow"},
        {"name": "data/device", "char": [1, 5], "mode": 0o666},
    ]
    source = make(volumes, "seeded", entries)
    volumes.definition("one", definition(source) + mount(type="volume", source="shop", target="/data"))
    volumes.definition("two", definition(source) + mount(type="volume", source="shop", target="/data"))
    volumes.reload()
    assert volumes.run(f"ls -A {VOLUMES}").stdout.split() == ["shop"]
    assert volumes.run(f"stat -c '%u %g %a' {VOLUMES}/shop/_data").stdout == "33 33 2770\n"
    assert volumes.run(f"readlink {VOLUMES}/shop/_data/link").stdout == "/etc/shadow\n"
    volumes.cleat("exec", "one", "--", "sh", "-c", "echo mine >/data/seed; rm /data/link")
    assert volumes.cleat("exec", "two", "--", "cat", "/data/seed").stdout == "mine\n"
    # A device node does not work through a volume, whatever the cgroup allows.
    assert "Permission denied" in volumes.cleat("exec", "one", "--", "cat", "/data/device", check=False).stderr
    for name in ("one", "two"):
        volumes.cleat("restart", name)
    assert volumes.cleat("exec", "two", "--", "ls", "/data").stdout.split() == ["device", "seed"]
    assert volumes.cleat("exec", "two", "--", "cat", "/data/seed").stdout == "mine\n"


def test_volumes_of_images_stay_with_their_container(volumes: Host) -> None:
    source = make(volumes, "own", [{"name": "data/seed", "text": "x"}], Volumes={"/data": {}, "/other/": {}})
    covered = mount(type="tmpfs", target="/other")
    for name in ("one", "two"):
        volumes.definition(name, definition(source) + covered)
    volumes.reload()
    names = volumes.run(f"ls {VOLUMES}").stdout.split()
    assert [name.rpartition("-")[0] for name in names] == ["one", "two"]
    volumes.cleat("exec", "one", "--", "touch", "/data/mark")
    volumes.cleat("restart", "one")
    assert volumes.cleat("exec", "one", "--", "ls", "/data").stdout.split() == ["mark", "seed"]
    assert volumes.cleat("exec", "two", "--", "ls", "/data").stdout.split() == ["seed"]
    volumes.remove_definition("two")
    volumes.reload()
    pruned = json.loads(volumes.cleat("prune", "--json").stdout)
    assert pruned["unused_volumes"] == names[1:]
    assert volumes.run(f"ls {VOLUMES}").stdout.split() == names


def test_a_half_filled_volume_is_no_volume(volumes: Host) -> None:
    source = make(volumes, "half", [{"name": "data/seed", "text": "x"}])
    volumes.run(f"mkdir -p {VOLUMES}/.1-1-abc/_data")
    volumes.definition("half", definition(source) + mount(type="volume", source="half", target="/data"))
    volumes.reload()
    assert volumes.run(f"ls -A {VOLUMES}").stdout.split() == ["half"]
    assert volumes.cleat("exec", "half", "--", "ls", "/data").stdout.split() == ["seed"]


def test_from_a_folder(volumes: Host) -> None:
    root = volumes.rootfs("folder")
    volumes.run(f"mkdir -p {root}/data && echo seed >{root}/data/seed")
    toml = f'rootfs = "{root}"\ncommand = ["/bin/sleep", "1000"]\n{QUICK}'
    volumes.definition("folder", toml + mount(type="volume", source="fold", target="/data"))
    volumes.reload()
    assert volumes.cleat("exec", "folder", "--", "cat", "/data/seed").stdout == "seed\n"
    volumes.cleat("exec", "folder", "--", "sh", "-c", "echo x >/written; echo x >/data/written")
    volumes.cleat("restart", "folder")
    assert volumes.cleat("exec", "folder", "--", "ls", "/written", check=False).returncode != 0
    assert volumes.cleat("exec", "folder", "--", "cat", "/data/written").stdout == "x\n"
    assert not volumes.exists(f"{root}/written")


def test_a_missing_source_says_which(volumes: Host) -> None:
    root = volumes.rootfs("folder")
    toml = f'rootfs = "{root}"\ncommand = ["/bin/sleep", "1000"]\n{QUICK}'
    volumes.definition(
        "lost",
        toml + mount(type="tmpfs", target="/a") + mount(type="bind", source="/nowhere", target="/b"),
    )
    refused = volumes.cleat("reload-agent", check=False)
    assert refused.returncode != 0
    assert "/nowhere" in refused.stderr
    assert "mount[1].source" in refused.stderr


def test_read_only_root_and_tmpfs(volumes: Host) -> None:
    entries: list[Entry] = [{"name": "seeded/", "dir": True}, {"name": "seeded/file", "text": "here"}]
    toml = definition(make(volumes, "ro", entries)) + mount(
        type="tmpfs", target="/seeded", size="1M", options=["tmpcopyup"]
    )
    volumes.definition("ro", toml + "\n[security]\nread_only = true\n")
    volumes.reload()
    execute = ("exec", "ro", "--", "sh", "-c")
    assert volumes.cleat(*execute, "echo x >/file", check=False).returncode != 0
    assert volumes.cleat(*execute, "echo x >/tmp/file; cat /tmp/file /seeded/file").stdout == "x\nhere"
    assert volumes.cleat(*execute, "head -c 4194304 /dev/zero >/seeded/big", check=False).returncode != 0
    assert int(volumes.cleat(*execute, "stat -c %s /seeded/big").stdout) <= 1 << 20


def test_links_in_a_volume_lead_nowhere(volumes: Host) -> None:
    """A container prepares a volume so that the next one's mount, or the host, would be led astray."""
    root = volumes.rootfs("folder")
    volumes.run("rm -rf /var/tmp/outside; mkdir /var/tmp/outside")
    toml = f'rootfs = "{root}"\ncommand = ["/bin/sleep", "1000"]\n{QUICK}'
    first = mount(type="volume", source="trap", target="/data")
    volumes.definition("trap", toml + first)
    volumes.reload()
    volumes.cleat("exec", "trap", "--", "ln", "-s", "/var/tmp/outside", "/data/inner")
    volumes.definition("trapped", toml + first + mount(type="volume", source="inner", target="/data/inner"))
    volumes.reload()
    volumes.cleat("exec", "trapped", "--", "touch", "/data/inner/mark", check=False)
    assert volumes.run("ls -A /var/tmp/outside").stdout == ""


def test_an_overlay_cannot_hold_changes(volumes: Host) -> None:
    root = volumes.rootfs("folder")
    folders = "/var/tmp/ov/l /var/tmp/ov/u /var/tmp/ov/w"
    volumes.run(f"mkdir -p {folders} /var/lib/cleat/overlay && mount -t tmpfs none /var/tmp/ov && mkdir -p {folders}")
    options = "lowerdir=/var/tmp/ov/l,upperdir=/var/tmp/ov/u,workdir=/var/tmp/ov/w"
    volumes.run(["mount", "-t", "overlay", "overlay", "-o", options, "/var/lib/cleat/overlay"])
    try:
        toml = f'rootfs = "{root}"\ncommand = ["/bin/true"]\nautostart = false\n{QUICK}'
        volumes.definition("stacked", toml)
        volumes.reload()
        refused = volumes.cleat("start", "stacked", check=False).stderr
        assert "is on overlay, which cannot hold an overlay's changes" in refused
        assert "rootfs_writable" in refused
    finally:
        volumes.run("umount /var/lib/cleat/overlay /var/tmp/ov")


def test_nothing_shows_in_the_mount_table(volumes: Host) -> None:
    root = volumes.rootfs("folder")
    before = volumes.run("cat /proc/1/mountinfo").stdout
    for i in range(20):
        volumes.definition(f"c{i}", f'rootfs = "{root}"\ncommand = ["/bin/sleep", "1000"]\n{QUICK}')
    volumes.reload()
    assert {one["state"] for one in volumes.status()} == {"running"}
    assert volumes.run("cat /proc/1/mountinfo").stdout == before
