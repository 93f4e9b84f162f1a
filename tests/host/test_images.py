# SPDX-License-Identifier: Apache-2.0
"""Images: fetched from a registry on the loopback, unpacked, run, and removed again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.host import registry
from tests.host.hosts import Host
from tests.host.registry import ADDRESS, STORE, Entry, Registry, definition, make


@pytest.fixture
def images(clean: Host) -> Iterator[Host]:
    """The host without any image, before and after."""
    registry.forget(clean)
    yield clean
    clean.run("rm -f /etc/cleat/containers/*.toml; cleat reload-agent", check=False)
    registry.forget(clean)


@pytest.fixture
def hub(images: Host) -> Iterator[Registry]:
    found = Registry(images)
    found.start()
    yield found
    found.stop()


def output(host: Host, name: str) -> str:
    """What the container printed; the agent's own entries left out."""
    entries = [entry for entry in host.journal(f"CONTAINER_NAME={name}") if "CLEAT_EVENT" not in entry]
    return "".join(f"{str(entry['MESSAGE']).rstrip()}\n" for entry in entries)


def ran(host: Host, name: str, toml: str) -> str:
    """Runs a oneshot to its end and returns what it printed."""
    host.definition(name, toml + 'type = "oneshot"\n')
    host.reload()
    assert host.cleat("wait", name).stdout.strip().endswith("0"), host.status(name)
    return output(host, name)


def works(host: Host) -> list[str]:
    return host.run(f"ls {STORE}/work", check=False).stdout.split()


def fetched(host: Host) -> list[str]:
    return [str(entry["IMAGE"]) for entry in host.journal("CLEAT_EVENT=pulled")]


def test_what_the_image_says_is_done(hub: Registry) -> None:
    script = "trap 'echo bye; exit 0' QUIT; id -u; pwd; echo $COLOUR $HOME; ls -ln /data; sleep 1000 & wait"
    source = make(
        hub.host,
        "web",
        [
            {"name": "srv/", "dir": True, "uid": 33, "gid": 33},
            {"name": "data/", "dir": True, "uid": 33, "gid": 33, "mode": 0o750},
            {"name": "data/seed", "text": "x", "uid": 33},
        ],
        Cmd=["/bin/sh", "-c", script],
        User="web",
        WorkingDir="/srv",
        Env=["COLOUR=blue"],
        StopSignal="SIGQUIT",
        Volumes={"/data": {}},
    )
    host = hub.host
    image = hub.push(source, "web:1")
    host.definition("web", definition(image))
    host.reload()
    assert host.status("web")["state"] == "running"
    host.cleat("stop", "web")
    assert host.status("web")["exit_code"] == 0
    said = output(host, "web").splitlines()
    assert said[:3] == ["33", "/srv", "blue /srv"]
    assert re.search(r"33 +0 .*seed", "\n".join(said))
    assert said[-1] == "bye"
    (volume,) = host.run("ls /var/lib/cleat/volumes").stdout.split()
    assert volume.startswith("web-")
    assert host.run(f"stat -c '%u %g %a' /var/lib/cleat/volumes/{volume}/_data").stdout == "33 33 750\n"
    (row,) = json.loads(host.cleat("images", "--json").stdout)
    assert row["reference"] == image
    assert row["containers"] == ["web"]
    assert works(host) == []


def test_layers_are_applied(images: Host) -> None:
    source = make(
        images,
        "layers",
        [
            {"name": "gone", "text": "x"},
            {"name": "full/", "dir": True},
            {"name": "full/old", "text": "x"},
            {"name": "kept", "text": "kept", "xattrs": {"user.colour": "blue"}},
        ],
        [
            {"name": ".wh.gone", "text": ""},
            {"name": "full/", "dir": True},
            {"name": "full/.wh..wh..opq", "text": ""},
            {"name": "full/new", "text": "x"},
            {"name": "second", "hardlink": "kept"},
            {"name": "mem", "char": [1, 1], "mode": 0o666},
        ],
        Cmd=["/bin/sh", "-c", "ls /gone; ls /full; cat /second; stat -c %h /kept; head -c 1 /mem; true"],
    )
    said = ran(images, "layers", definition(source))
    assert "/gone: No such file" in said
    assert "new" in said
    assert "old" not in said
    assert "kept2" in said.replace("\n", "")
    # A device node of an image is there, and of no use.
    assert "/mem: Operation not permitted" in said


def test_registry_away(hub: Registry) -> None:
    host = hub.host
    image = hub.push(make(host, "away"), "away:1")
    host.definition("first", definition(image))
    host.reload()
    hub.stop()
    host.definition("second", definition(image))
    host.definition("third", definition(image, policy="newer"))
    host.definition("fourth", definition(image, policy="always"))
    host.reload()
    assert [host.status(name)["state"] for name in ("first", "second", "third")] == ["running"] * 3
    host.wait_event("fourth", "failed-to-start")
    failed = host.status("fourth")
    assert failed["error_code"] == "pull-failed"
    assert "the registry cannot be reached" in failed["error"]
    assert fetched(host) == [image]


def test_policies_meet_a_new_image(hub: Registry) -> None:
    host = hub.host
    image = hub.push(make(host, "one", [{"name": "version", "text": "1"}]), "shop:latest")
    for policy in ("missing", "newer", "always"):
        host.definition(policy, definition(image, policy=policy))
    host.reload()
    hub.push(make(host, "two", [{"name": "version", "text": "2"}]), "shop:latest")
    host.cleat("restart", "missing")
    assert host.cleat("exec", "missing", "--", "cat", "/version").stdout == "1"
    host.cleat("restart", "newer")
    assert host.cleat("exec", "newer", "--", "cat", "/version").stdout == "2"
    assert host.cleat("exec", "missing", "--", "cat", "/version").stdout == "1"
    host.cleat("restart", "always")
    assert host.cleat("exec", "always", "--", "cat", "/version").stdout == "2"
    assert len(fetched(host)) == 2


def test_never(hub: Registry) -> None:
    host = hub.host
    image = hub.push(make(host, "never"), "never:1")
    host.definition("never", definition(image, policy="never"))
    host.reload()
    failed = host.status("never")
    assert failed["error_code"] == "pull-failed"
    assert "is not here, and is not to be fetched" in failed["error"]
    assert "cleat pull never" in failed["error"]
    host.cleat("pull", "never")
    host.cleat("start", "never")
    assert host.status("never")["state"] == "running"


def test_many_want_the_same_image(hub: Registry) -> None:
    host = hub.host
    image = hub.push(make(host, "many"), "many:1")
    for i in range(6):
        host.definition(f"c{i}", definition(image))
    host.reload()
    assert {one["state"] for one in host.status()} == {"running"}
    assert fetched(host) == [image]
    assert host.run(f"ls {STORE}/trees | wc -l").stdout.strip() == "1"


def test_by_digest(hub: Registry) -> None:
    host = hub.host
    image = hub.push(make(host, "fixed"), "fixed:1")
    digest = host.run(["skopeo", "inspect", "--tls-verify=false", "--format={{.Digest}}", f"docker://{image}"])
    host.definition("fixed", definition(f"{image}@{digest.stdout.strip()}", policy="always"))
    host.reload()
    assert host.status("fixed")["state"] == "running"
    hub.stop()
    host.cleat("restart", "fixed")
    assert host.status("fixed")["state"] == "running"


@pytest.mark.parametrize("kind", ["oci", "oci-archive", "docker-archive", "dir"])
def test_local_images(images: Host, kind: str) -> None:
    source = make(images, "local", Cmd=["/bin/echo", "local"])
    target = {"oci": "oci:/var/tmp/l/o:v1", "dir": "dir:/var/tmp/l/d"}.get(kind, f"{kind}:/var/tmp/l/{kind}.tar")
    images.run("rm -rf /var/tmp/l; mkdir /var/tmp/l")
    images.run(["skopeo", "copy", source, f"{target}:a:b" if kind == "docker-archive" else target])
    assert "local" in ran(images, "local", definition(target))
    images.run("rm -rf /var/tmp/l")


def test_zstd_layers(hub: Registry) -> None:
    host = hub.host
    source = make(host, "zstd", [{"name": "hello", "text": "packed by zstd"}], Cmd=["/bin/cat", "/hello"])
    host.run(["skopeo", "copy", "--dest-compress-format", "zstd", source, f"oci:{registry.LAYOUTS}/packed:t"])
    assert "zstd" in host.run(f"cat {registry.LAYOUTS}/packed/blobs/sha256/* | grep -a -o tar+zstd | head -n 1").stdout
    image = hub.push(f"oci:{registry.LAYOUTS}/packed:t", "zstd:1")
    assert "packed by zstd" in ran(host, "zstd", definition(image))


@pytest.mark.parametrize(
    ("image", "reason"),
    [(f"{ADDRESS}/nothing:1", "there is no such image"), ("127.0.0.1:5999/x", "the registry cannot be reached")],
)
def test_what_cannot_be_fetched(hub: Registry, image: str, reason: str) -> None:
    hub.host.definition("wrong", definition(image))
    hub.host.reload()
    failed = hub.host.status("wrong")
    assert failed["state"] in {"failed", "backoff"}
    assert reason in failed["error"]
    assert works(hub.host) == []


def test_the_signature_policy_decides(hub: Registry) -> None:
    host = hub.host
    image = hub.push(make(host, "signed"), "signed:1")
    policy = host.read("/etc/containers/policy.json")
    host.definition("signed", definition(image))
    try:
        host.write("/etc/containers/policy.json", '{"default": [{"type": "reject"}]}')
        host.reload()
        assert "the signature policy of this host rejects the image" in host.status("signed")["error"]
        host.run(["rm", "/etc/containers/policy.json"])
        failed = host.cleat("pull", "signed", check=False)
        assert failed.returncode != 0
        assert "the signature policy is missing" in failed.stderr
    finally:
        host.write("/etc/containers/policy.json", policy)
    host.cleat("pull", "signed")


def test_a_mute_registry_can_be_given_up(images: Host) -> None:
    mute = "import socket, time; s = socket.create_server(('', 5001)); print('up', flush=True); time.sleep(900)"
    mark = images.cursor()
    images.run(["systemd-run", "--quiet", "--collect", "--unit=mute", "python3", "-c", mute])
    images.wait_journal("_SYSTEMD_UNIT=mute.service", since=mark, where=lambda entry: entry["MESSAGE"] == "up")
    images.definition("slow", definition("127.0.0.1:5001/slow:1", "autostart = false"))
    images.reload()
    with images.start(["cleat", "start", "slow"]):
        images.wait_journal("CLEAT_CONTAINER=slow", "CLEAT_EVENT=pulling")
        assert images.status("slow")["state"] == "pulling"
        assert images.run(["pgrep", "-x", "skopeo"]).stdout
        images.cleat("stop", "slow")
    assert images.run(["pgrep", "-x", "skopeo"], check=False).returncode == 1
    assert works(images) == []
    with images.start(["cleat", "start", "slow"]):
        images.wait_journal("CLEAT_CONTAINER=slow", "CLEAT_EVENT=pulling")
        images.run(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "cleat.service"])
        images.wait_journal("CLEAT_EVENT=agent-started")
    images.run("systemctl stop mute.service; cleat stop slow", check=False)
    # What the killed agent left half-made goes with the next fetch.
    source = make(images, "after")
    images.definition("after", definition(source))
    images.reload()
    assert images.status("after")["state"] == "running"
    assert works(images) == []


def test_disk_full(images: Host) -> None:
    source = make(images, "large", [{"name": f"f{i}", "text": "x" * (1 << 20)} for i in range(12)])
    images.run(f"mkdir -p {STORE} && mount -t tmpfs -o size=8M,mode=0700 none {STORE}")
    try:
        images.definition("large", definition(source))
        images.reload()
        failed = images.status("large")
        assert "there is no space left for the image" in failed["error"]
        assert "cleat prune" in failed["error"]
        assert works(images) == []
    finally:
        images.run(f"umount {STORE}")


def test_a_damaged_layer_is_fetched_again(hub: Registry) -> None:
    host = hub.host
    image = hub.push(make(host, "hurt"), "hurt:1")
    host.definition("hurt", definition(image, "autostart = false"))
    host.reload()
    host.cleat("pull", "hurt")
    host.run(f"rm -rf {STORE}/trees/*; for f in {STORE}/blobs/sha256/*; do truncate -s 100 $f; done")
    host.cleat("start", "hurt")
    assert host.status("hurt")["state"] == "running"


def test_prune(hub: Registry) -> None:
    host = hub.host
    image = hub.push(make(host, "one", [{"name": "version", "text": "1"}]), "shop:latest")
    other = hub.push(make(host, "other"), "other:1")
    host.definition("shop", definition(image))
    host.definition("other", definition(other, "autostart = false"))
    host.reload()
    host.cleat("pull", "other")
    hub.push(make(host, "two", [{"name": "version", "text": "2"}]), "shop:latest")
    host.cleat("pull", "shop")
    assert host.run(f"ls {STORE}/trees | wc -l").stdout.strip() == "3"

    host.remove_definition("other")
    host.reload()
    planned = json.loads(host.cleat("prune", "--dry-run", "--json").stdout)
    assert planned["images"] == [other]
    assert planned["bytes"] > 0
    assert host.run(f"ls {STORE}/trees | wc -l").stdout.strip() == "3"
    host.cleat("prune")
    # The tree that runs stays, although its name means the newer one.
    assert host.run(f"ls {STORE}/trees | wc -l").stdout.strip() == "2"
    assert host.cleat("exec", "shop", "--", "cat", "/version").stdout == "1"
    host.cleat("restart", "shop")
    assert host.cleat("exec", "shop", "--", "cat", "/version").stdout == "2"
    host.cleat("prune")
    assert host.run(f"ls {STORE}/trees | wc -l").stdout.strip() == "1"
    host.cleat("restart", "shop")


# Hostile images


def test_layers_cannot_leave_their_tree(images: Host) -> None:
    images.run("rm -rf /var/tmp/outside; mkdir /var/tmp/outside")
    up = "../" * 12 + "var/tmp/outside"
    for i, entries in enumerate(
        [
            [{"name": f"{up}/dots", "text": "x"}],
            [{"name": "door", "link": "/var/tmp/outside"}, {"name": "door/absolute", "text": "x"}],
            [{"name": "door", "link": up}, {"name": "door/relative", "text": "x"}],
            [{"name": "/var/tmp/outside/slash", "text": "x"}],
            [{"name": ".", "link": "/var/tmp/outside"}, {"name": "dot", "text": "x"}],
            [{"name": "hard", "hardlink": f"{up}/../../../etc/shadow"}],
            [{"name": "door", "link": "/var/tmp"}, {"name": "door/.wh.outside", "text": ""}],
        ]
    ):
        images.definition(f"h{i}", definition(make(images, f"h{i}", entries)))
        images.reload()
    assert images.run("ls -A /var/tmp/outside").stdout == ""
    assert images.run("stat -c %h /etc/shadow").stdout == "1\n"


def test_links_in_an_image_lead_nowhere(images: Host) -> None:
    """/etc/passwd, the working directory, a volume and a mount point are links to the host's files."""
    images.run("rm -rf /var/tmp/outside; mkdir /var/tmp/outside; echo secret >/var/tmp/outside/secret")
    images.run("mkdir -p /var/tmp/other; echo secret >/var/tmp/other/secret")
    images.run("echo 'evil:x:0:0::/root:/bin/sh' >/var/tmp/outside/passwd")
    entries: list[Entry] = [
        *({"name": f"{name}/", "dir": True} for name in ("var", "var/tmp", "var/tmp/outside", "var/tmp/other")),
        {"name": "etc/passwd", "link": "/var/tmp/outside/passwd"},
        {"name": "work", "link": "/var/tmp/outside"},
        {"name": "data", "link": "../../../../../../../../var/tmp/other"},
        {"name": "point", "link": "/var/tmp/outside"},
    ]
    source = make(images, "links", entries, User="evil", WorkingDir="/work/made", Volumes={"/data": {}, "/../../x": {}})
    images.definition("links", definition(source))
    images.reload()
    assert "there is no user 'evil'" in images.status("links")["error"]
    mount = '\n[[mount]]\ntype = "volume"\nsource = "held"\ntarget = "/point"\n'
    images.definition("links", definition(source, 'user = "0"', 'working_directory = "/"') + mount)
    images.reload()
    images.cleat("start", "links")
    assert "secret" not in images.run("ls -R /var/lib/cleat/volumes").stdout
    images.cleat("exec", "links", "--", "touch", "/point/mark")
    assert images.run("ls /var/tmp/outside").stdout.split() == ["passwd", "secret"]
    assert images.run("ls /var/lib/cleat/volumes/held/_data").stdout.split() == ["mark"]


@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
def test_a_linked_mount_point_is_refused(images: Host, name: str) -> None:
    source = make(images, "dev", [{"name": f".wh.{name}", "text": ""}], [{"name": name, "link": "/tmp"}])
    images.definition("dev", definition(source))
    images.reload()
    assert f"/{name} of its root file system is a symbolic link" in images.status("dev")["error"]


def test_odd_configurations(images: Host) -> None:
    """Wrong types, a newline in a home, set-id bits, inheritable capabilities: nothing of it gets through."""
    entries = [{"name": "etc/passwd", "text": "root:x:0:0:root:/ro\\not\x01:/bin/sh\n", "mode": 0o644}]
    source = make(
        images,
        "odd",
        entries,
        Cmd=["/bin/sh", "-c", 'echo "home=$HOME"; cat /proc/self/status'],
        Env=["=x", "A", "HOME=/a\nb"],
        Volumes={"": {}, "/": {}, "../../..": {}},
        StopSignal="SIGNOTHING",
    )
    said = ran(images, "odd", definition(source))
    assert "home=/a\nb\n" in said
    for kind in ("CapInh", "CapAmb"):
        assert re.search(rf"{kind}:\s0+\n", said)
