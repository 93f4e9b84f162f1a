# SPDX-License-Identifier: Apache-2.0
"""User namespaces and namespaces shared with others."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.host import registry
from tests.host.hosts import Host
from tests.host.registry import QUICK, definition, make
from tests.host.test_volumes import mount

RANGES = "containers:200000:262144\n"


@pytest.fixture
def shifted(clean: Host) -> Iterator[Host]:
    registry.forget(clean)
    for file in ("/etc/subuid", "/etc/subgid"):
        clean.run(["cp", "-a", file, f"{file}.kept"])
        clean.write(file, RANGES)
    yield clean
    clean.run("rm -f /etc/cleat/containers/*.toml; cleat reload-agent", check=False)
    registry.forget(clean)
    clean.run("mv /etc/subuid.kept /etc/subuid; mv /etc/subgid.kept /etc/subgid")


def auto(source: str, *more: str) -> str:
    return definition(source) + '\n[security]\nuser_namespace = "auto"\n' + "".join(more)


def uid_map(host: Host, name: str) -> list[int]:
    return [int(n) for n in host.cleat("exec", name, "--", "cat", "/proc/self/uid_map").stdout.split()]


def owner(host: Host, name: str) -> str:
    return host.run(["stat", "-c", "%u:%g", f"/proc/{host.status(name)['pid']}"]).stdout.strip()


def test_auto_gives_each_its_own_ids(shifted: Host) -> None:
    entries = [
        {"name": "data/", "dir": True, "uid": 33, "gid": 33},
        {"name": "data/seed", "text": "x", "uid": 33, "mode": 0o600},
    ]
    source = make(shifted, "auto", entries, Volumes={"/data": {}})
    for i in range(3):
        shifted.definition(f"c{i}", auto(source))
    shifted.reload()
    assert sorted(uid_map(shifted, f"c{i}")[1] for i in range(3)) == [200000, 265536, 331072]
    assert {owner(shifted, f"c{i}") for i in range(3)} == {"200000:200000", "265536:265536", "331072:331072"}
    execute = ("exec", "c1", "--", "sh", "-c")
    assert shifted.cleat(*execute, "stat -c '%u %g' /bin /data /data/seed /etc/hosts").stdout.split() == [
        "0", "0", "33", "33", "33", "0", "0", "0",
    ]  # fmt: skip
    shifted.cleat(*execute, "echo x >/root-file; echo y >/data/new; cat /data/seed; chown 5 /data/new")
    volume = shifted.run("ls -d /var/lib/cleat/volumes/c1-*").stdout.strip()
    assert shifted.run(f"stat -c '%u' {volume}/_data/new").stdout == "5\n"
    # The host's root owns nothing that it could reach.
    assert shifted.cleat(*execute, "cat /proc/1/root/etc/passwd >/dev/null && echo ok").stdout == "ok\n"
    assert shifted.cleat(*execute, "echo 1 >/proc/sys/kernel/panic", check=False).returncode != 0

    # A range is free again when its container is gone, whatever the agent remembers.
    shifted.run(["systemctl", "restart", "cleat.service"])
    shifted.cleat("stop", "c0")
    shifted.definition("c3", auto(source))
    shifted.reload()
    taken = [uid_map(shifted, name)[1] for name in ("c1", "c2", "c3")]
    assert len(set(taken)) == 3
    shifted.cleat("restart", "c1")
    assert shifted.cleat("exec", "c1", "--", "cat", "/data/new").stdout == "y\n"


def test_ranges_run_out(shifted: Host) -> None:
    source = make(shifted, "few")
    shifted.write("/etc/subgid", "containers:200000:65536\n")
    for name in ("one", "two"):
        shifted.definition(name, auto(source) + "")
    shifted.reload()
    failed = [one for one in shifted.status() if one["state"] != "running"]
    assert len(failed) == 1
    assert "there are no 65536 free ids for containers in /etc/subgid" in failed[0]["error"]


def test_a_map_of_ones_own(shifted: Host) -> None:
    source = make(shifted, "own", [{"name": "etc/secret", "text": "x", "uid": 33, "mode": 0o400}], User="web")
    keys = 'user_namespace = "map"\nuid_map = ["0:700000:100"]\ngid_map = ["0:800000:200"]\n'
    shifted.definition("own", definition(source) + f"\n[security]\n{keys}")
    shifted.reload()
    assert owner(shifted, "own") == "700033:800033"
    assert shifted.cleat("exec", "own", "--", "cat", "/etc/secret").stdout == "x"
    assert uid_map(shifted, "own") == [0, 700000, 100]


def test_credentials_sockets_and_bind_mounts(shifted: Host) -> None:
    shifted.write("/etc/cleat/secrets/db", "hidden", mode=0o600)
    shifted.run(
        "rm -rf /var/tmp/bound; mkdir /var/tmp/bound; echo x >/var/tmp/bound/file; chmod 600 /var/tmp/bound/file"
    )
    more = (
        '\n[[credential]]\nname = "db"\nload = "/etc/cleat/secrets/db"\n',
        mount(type="bind", source="/var/lib/cleat/shared", target="/idmapped", options=["idmap"]),
        mount(type="bind", source="/var/tmp/bound", target="/plain"),
    )
    shifted.run(
        "mkdir -p /var/lib/cleat/shared; echo y >/var/lib/cleat/shared/file; chmod 600 /var/lib/cleat/shared/file"
    )
    shifted.definition("c", auto(make(shifted, "web", User="web"), *more))
    shifted.reload()
    assert shifted.cleat("exec", "c", "--", "sh", "-c", "cat $CREDENTIALS_DIRECTORY/db").stdout == "hidden"
    root = ("exec", "-u", "0", "c", "--", "cat")
    assert shifted.cleat(*root, "/idmapped/file").stdout == "y\n"
    assert shifted.cleat(*root, "/plain/file", check=False).returncode != 0
    shifted.run("rm -rf /var/lib/cleat/shared /etc/cleat/secrets")


def test_a_file_system_that_cannot_do_it(shifted: Host) -> None:
    root = shifted.rootfs("overlaid")
    keys = f'{QUICK}[security]\nuser_namespace = "auto"\n'
    shifted.definition("c", f'rootfs = "{root}"\ncommand = ["/bin/sleep", "1000"]\n{keys}')
    shifted.reload()
    refused = shifted.cleat("start", "c", check=False).stderr
    assert f"cannot shift the owners of {root}" in refused
    assert "(overlay) cannot do ID-mapped mounts" in refused


def test_a_writable_root_is_shifted_too(shifted: Host) -> None:
    root = shifted.rootfs("folder")
    shifted.run(f"rm -rf /var/lib/cleat/folder; cp -a {root} /var/lib/cleat/folder")
    keys = f'rootfs_writable = true\n{QUICK}[security]\nuser_namespace = "auto"\n'
    shifted.definition("c", f'rootfs = "/var/lib/cleat/folder"\ncommand = ["/bin/sleep", "1000"]\n{keys}')
    shifted.reload()
    shifted.cleat("exec", "c", "--", "touch", "/mark")
    assert shifted.run("stat -c %u /var/lib/cleat/folder/mark").stdout == "0\n"
    shifted.cleat("stop", "c")
    shifted.run("rm -rf /var/lib/cleat/folder")


def test_network_of_another_container(clean: Host) -> None:
    root = clean.rootfs("net")
    base = f'rootfs = "{root}"\ncommand = ["/bin/sleep", "1000"]\n{QUICK}'
    names = 'dns = ["10.0.0.53"]\nhosts = { db = "10.0.0.5" }\n'
    clean.definition("first", base + f'[network]\nmode = "private"\n{names}')
    clean.definition(
        "second", 'after = ["first"]\nrequires = ["first"]\n' + base + '[network]\nmode = "container:first"\n'
    )
    clean.reload()
    links = {
        name: clean.run(["readlink", f"/proc/{clean.status(name)['pid']}/ns/net"]).stdout
        for name in ("first", "second")
    }
    assert links["first"] == links["second"]
    assert links["first"] != clean.run("readlink /proc/1/ns/net").stdout
    clean.cleat("restart", "second")
    clean.cleat("exec", "first", "--", "sh", "-c", "echo 10.0.0.9 told >>/etc/hosts")
    files = {name: clean.cleat("exec", name, "--", "cat", "/etc/hosts").stdout for name in links}
    assert files["first"] == files["second"]
    assert [line.split()[1] for line in files["first"].splitlines()[-4:]] == ["first", "db", "second", "told"]
    assert clean.cleat("exec", "second", "--", "cat", "/etc/resolv.conf", "/etc/hostname").stdout == (
        "nameserver 10.0.0.53\nsecond\n"
    )
    clean.cleat("stop", "second")
    clean.cleat("stop", "first")
    clean.definition("third", base + '[network]\nmode = "container:first"\n')
    clean.reload()
    assert "first does not run" in clean.status("third")["error"]


def test_a_named_network_namespace(clean: Host) -> None:
    root = clean.rootfs("net")
    base = f'rootfs = "{root}"\ncommand = ["/bin/sleep", "1000"]\n{QUICK}[network]\n'
    clean.run("ip netns add side")
    try:
        clean.definition("c", base + 'mode = "ns:/run/netns/side"\n')
        clean.definition("wrong", base + 'mode = "ns:/etc/passwd"\n')
        clean.reload()
        inode = clean.run("stat -Lc %i /run/netns/side").stdout.strip()
        assert inode in clean.run(["readlink", f"/proc/{clean.status('c')['pid']}/ns/net"]).stdout
        assert "/etc/passwd is no network namespace" in clean.status("wrong")["error"]
        clean.cleat("stop", "c")
    finally:
        clean.run("ip netns del side")


def test_nothing_is_known_of_secrets_in_the_spec(shifted: Host) -> None:
    shifted.definition("c", auto(make(shifted, "plain")))
    shifted.reload()
    found = json.loads(shifted.cleat("inspect", "c").stdout)
    assert found["name"] == "c" if isinstance(found, dict) else found[0]["name"] == "c"


def test_an_old_runc_says_so(shifted: Host) -> None:
    source = make(shifted, "runc", Volumes={"/data": {}})
    shifted.definition("c", auto(source, '\n[runtime]\nname = "runc"\n'))
    shifted.definition("d", auto(make(shifted, "plain"), '\n[runtime]\nname = "runc"\n'))
    shifted.reload()
    assert uid_map(shifted, "d") == [0, 200000, 65536]
    said = shifted.status("c")
    if shifted.run("runc --version").stdout.startswith("runc version 1.1."):
        assert "cannot show volumes to a user namespace" in said["error"]
    else:
        assert said["state"] == "running"
