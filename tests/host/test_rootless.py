# SPDX-License-Identifier: Apache-2.0
"""The agent of a user who is not root, under `systemctl --user`, with a bus of their own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.host import registry
from tests.host.registry import Registry, definition, make
from tests.host.test_volumes import mount

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.hosts import Host, Result

USER = "tess"
HOME = f"/home/{USER}"
STATE = f"{HOME}/.local/share/cleat"
OVERLAYS = f"{STATE}/overlay"
RUNTIMES = pytest.mark.parametrize("runtime", ["crun", "runc"])
LOOP = "trap 'exit 0' TERM; echo begun; while :; do sleep 1000 & wait; done"
# What the package dbus-user-session has.
BUS_SOCKET = "[Socket]\nListenStream=%t/bus\n[Install]\nWantedBy=sockets.target\n"
BUS_SERVICE = """[Unit]
Requires=dbus.socket
[Service]
Type=notify
ExecStart=/usr/bin/dbus-daemon --session --address=systemd: --nofork --nopidfile --systemd-activation --syslog-only
"""


@dataclass
class Person:
    """Somebody with a user manager on a host."""

    host: Host
    uid: str

    def run(self, *argv: str, check: bool = True, timeout: float = 30.0) -> Result:
        env = {"XDG_RUNTIME_DIR": f"/run/user/{self.uid}", "HOME": HOME, "USER": USER}
        words = ["runuser", "-u", USER, "--", "env", *(f"{key}={value}" for key, value in env.items()), *argv]
        return self.host.run(words, check=check, timeout=timeout)

    def cleat(self, *argv: str, check: bool = True) -> Result:
        return self.run("cleat", "--user", *argv, check=check)

    def define(self, name: str, toml: str, *, runtime: str = "crun") -> None:
        keys, bracket, tables = f"{toml}\n".partition("[")
        command = "" if "command" in keys else f"command = {json.dumps(['/bin/sh', '-c', LOOP])}\n"
        head = f'rootfs = "{HOME}/root"\n{command}runtime.name = "{runtime}"\n'
        self.write(name, head + keys + bracket + tables)

    def define_image(self, name: str, image: str, *lines: str, runtime: str = "crun") -> None:
        self.write(name, definition(image, f'runtime.name = "{runtime}"', *lines))

    def write(self, name: str, toml: str) -> None:
        self.host.write(f"{HOME}/.config/cleat/containers/{name}.toml", toml)
        self.host.run(["chown", "-R", f"{USER}:", f"{HOME}/.config"])
        self.cleat("reload-agent", check=False)

    def inside(self, name: str, script: str, *options: str) -> list[str]:
        return self.cleat("exec", *options, name, "--", "sh", "-c", f"{{ {script}; }} 2>&1").stdout.split()

    def subordinate(self) -> int:
        """Their first subordinate id."""
        return int(self.host.run(["grep", f"^{USER}:", "/etc/subuid"]).stdout.split(":")[1])

    def status(self, name: str) -> Any:
        return json.loads(self.cleat("status", "--json", name, check=False).stdout)[0]


@pytest.fixture(scope="module")
def person(host: Host) -> Iterator[Person]:
    root = host.rootfs("rootless")
    host.run(["useradd", "--create-home", USER])
    host.run(f"cp -a {root} {HOME}/root && chown -R {USER}: {HOME} && chmod 755 {HOME}")
    host.write("/etc/systemd/user/dbus.socket", BUS_SOCKET)
    host.write("/etc/systemd/user/dbus.service", BUS_SERVICE)
    host.run("systemctl --global enable dbus.socket")
    # logind does not outlive a restarted D-Bus broker, and another test restarts it.
    host.run(["systemctl", "restart", "systemd-logind.service"])
    host.run(["loginctl", "enable-linger", USER])
    uid = host.run(["id", "-u", USER]).stdout.strip()
    host.run(["systemctl", "start", f"user@{uid}.service"], timeout=60)
    someone = Person(host, uid)
    someone.run("systemctl", "--user", "start", "cleat.service", timeout=60)
    yield someone
    host.run(["loginctl", "disable-linger", USER])
    host.run(["systemctl", "stop", f"user@{uid}.service"], timeout=60)
    host.run("systemctl --global disable dbus.socket; rm /etc/systemd/user/dbus.s*", check=False)
    host.run(["userdel", "--remove", USER], check=False)


@pytest.fixture
def tess(clean: Host, person: Person) -> Iterator[Person]:
    yield person
    clean.run(f"rm -f {HOME}/.config/cleat/containers/*")
    person.cleat("stop", "--all", "--time", "0", check=False)
    person.cleat("reload-agent")
    for folder in (f"/run/user/{person.uid}/cleat/b", OVERLAYS):
        assert clean.run(["find", folder, "-mindepth", "1"]).stdout == ""
    assert person.run("systemctl", "--user", "list-units", "--plain", "--no-legend", "cleat-*.scope").stdout == ""


@RUNTIMES
@pytest.mark.parametrize("keys", ["rootfs_writable = true", "[security]\nread_only = true"], ids=["writable", "read"])
def test_a_container_runs_as_the_user(tess: Person, runtime: str, keys: str) -> None:
    tess.define("mine", keys, runtime=runtime)
    status = tess.status("mine")
    assert status["state"] == "running"
    assert tess.cleat("exec", "mine", "--", "id", "-u").stdout == "0\n"
    owner = tess.host.run(["stat", "-c", "%u", f"/proc/{status['pid']}"]).stdout.strip()
    assert owner == tess.uid
    cgroup = tess.host.read(f"/proc/{status['pid']}/cgroup")
    assert f"user@{tess.uid}.service/cleat.slice/cleat-mine.scope/container" in cgroup
    entry = tess.host.wait_journal("CONTAINER_NAME=mine", f"_UID={tess.uid}", where=lambda e: "begun" in e["MESSAGE"])
    assert entry["CONTAINER_ID_FULL"] == status["id"]
    tess.cleat("stop", "mine")
    assert tess.status("mine")["exit_code"] == 0


@RUNTIMES
def test_other_users_of_the_container_are_subordinate_ids(tess: Person, runtime: str) -> None:
    tess.define("mine", 'user = "www-data"\n[security]\nread_only = true', runtime=runtime)
    first = int(tess.host.run(["grep", f"^{USER}:", "/etc/subuid"]).stdout.split(":")[1])
    pid = tess.status("mine")["pid"]
    assert tess.host.run(["stat", "-c", "%u", f"/proc/{pid}"]).stdout.strip() == str(first + 33 - 1)
    assert tess.cleat("exec", "mine", "--", "id", "-u").stdout == "33\n"
    assert tess.cleat("exec", "-u", "0", "mine", "--", "id", "-u").stdout == "0\n"
    assert tess.cleat("exec", "-u", "daemon", "mine", "--", "id", "-u").stdout == "1\n"


@RUNTIMES
def test_it_holds_less_than_the_user(tess: Person, runtime: str) -> None:
    tess.define("mine", "[security]\nread_only = true", runtime=runtime)
    status = dict(
        line.partition(":\t")[::2] for line in tess.host.read(f"/proc/{tess.status('mine')['pid']}/status").splitlines()
    )
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert int(status["CapBnd"], 16).bit_count() == 11
    assert tess.cleat("exec", "mine", "--", "sh", "-c", "touch /x", check=False).returncode != 0
    assert tess.cleat("exec", "mine", "--", "sh", "-c", "touch /tmp/x").returncode == 0


def test_sockets_are_passed_on(tess: Person) -> None:
    serve = "[ $LISTEN_FDS = 1 ] && [ $LISTEN_PID = $$ ] && ls -l /proc/self/fd/3 && sleep 1000"
    table = (
        '[[socket]]\nlisten_stream = "127.0.0.1:7621"\n[security]\nread_only = true\n[service]\nkill_signal = "SIGKILL"'
    )
    tess.define("mine", f"command = {json.dumps(['/bin/sh', '-c', serve])}\n{table}")
    pid = tess.status("mine")["pid"]
    assert tess.host.run(["readlink", f"/proc/{pid}/fd/3"]).stdout.startswith("socket:")


def test_it_is_restarted(tess: Person) -> None:
    tess.define("mine", "[security]\nread_only = true")
    before = tess.status("mine")["id"]
    tess.cleat("kill", "--signal", "SIGKILL", "mine")
    tess.host.wait_journal("CLEAT_CONTAINER=mine", "CLEAT_EVENT=backoff", f"_UID={tess.uid}")
    tess.cleat("start", "mine")
    assert tess.status("mine")["id"] != before


def test_containers_outlive_the_agent(tess: Person) -> None:
    tess.define("mine", "[security]\nread_only = true")
    before = tess.status("mine")
    tess.run("systemctl", "--user", "restart", "cleat.service", timeout=60)
    after = tess.status("mine")
    assert (after["pid"], after["state"]) == (before["pid"], "running")


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ("", "rootfs"),
        ('[security]\nread_only = true\nuser_namespace = "map"\nuid_map = ["0:1:2"]', "user_namespace"),
        ('rootfs_writable = true\n[[credential]]\nname = "c"\nload = "/etc/hostname"', "credential"),
    ],
)
def test_what_needs_root_says_so(tess: Person, keys: str, key: str) -> None:
    table = "" if "[service]" in keys else '\n[service]\nrestart = "no"'
    tess.define("mine", keys + table)
    error = tess.status("mine")["error"]
    assert key in error
    assert "needs the system's agent" in error


def test_the_systems_agent_knows_nothing_of_them(tess: Person) -> None:
    tess.define("mine", "[security]\nread_only = true")
    assert tess.host.status() == []
    assert tess.cleat("status").stdout.count("mine") == 1


# Images

ENTRIES: list[registry.Entry] = [
    {"name": "data/", "dir": True, "uid": 33, "gid": 33, "mode": 0o700},
    {"name": "data/seed", "text": "x", "uid": 33, "gid": 33, "mode": 0o400, "xattrs": {"user.colour": "blue"}},
    {"name": "gone", "text": "x"},
    {"name": "twin", "hardlink": "gone"},
    {"name": "mem", "char": [1, 1], "mode": 0o666},
    {"name": "bin/set", "file": "/usr/bin/busybox", "uid": 33, "mode": 0o4755},
]


@pytest.fixture
def images(tess: Person) -> Iterator[Person]:
    yield tess
    tess.host.run(f"rm -f {HOME}/.config/cleat/containers/*; rm -rf {registry.LAYOUTS}")
    tess.cleat("stop", "--all", "--time", "0", check=False)
    tess.cleat("reload-agent")
    tess.cleat("prune")
    assert tess.host.run(f"ls {STATE}/images/trees {STATE}/images/work").stdout.split() == [
        f"{STATE}/images/trees:", f"{STATE}/images/work:",
    ]  # fmt: skip
    tess.host.run(f"rm -rf {STATE}/volumes")


@RUNTIMES
def test_each_run_of_an_image_has_a_copy(images: Person, runtime: str) -> None:
    images.define_image("mine", make(images.host, "mine", ENTRIES), runtime=runtime)
    assert images.status("mine")["state"] == "running", images.status("mine")["error"]
    seen = images.inside("mine", "stat -c '%u %g %a' / /bin /data /data/seed /bin/set; stat -c %h /gone /twin")
    assert seen == ["0", "0", "755"] * 2 + ["33", "33", "700", "33", "33", "400", "33", "0", "4755", "2", "2"]
    assert images.inside("mine", "cat /data/seed; id -u; echo y >/data/new; stat -c %u /data/new", "-u", "web") == [
        "x33", "33",
    ]  # fmt: skip
    assert images.inside("mine", "rm /gone; echo y >/bin/own; cat /bin/own /data/new") == ["y", "y"]
    (copy,) = images.host.run(f"ls -d {OVERLAYS}/*").stdout.split()
    first = images.subordinate()
    found = images.host.run(f"stat -c '%u %a' {copy} {copy}/rootfs {copy}/rootfs/data/seed").stdout.split()
    assert found == [images.uid, "700", images.uid, "755", str(first + 32), "400"]
    images.cleat("restart", "mine")
    assert images.inside("mine", "ls -A /data; cat /gone") == ["seed", "x"]
    assert images.host.run(f"ls {OVERLAYS}").stdout.split() == [images.status("mine")["id"]]
    images.cleat("stop", "mine")
    assert images.host.run(f"ls {OVERLAYS}").stdout == ""


def test_an_image_that_is_only_read_is_not_copied(images: Person) -> None:
    images.define_image("mine", make(images.host, "read", ENTRIES, User="web"), "security.read_only = true")
    assert images.inside("mine", "id -u; cat /data/seed") == ["33", "x"]
    assert images.host.run(f"ls {OVERLAYS}").stdout == ""


def test_images_are_fetched_and_removed(images: Person) -> None:
    hub = Registry(images.host)
    hub.start()
    try:
        image = hub.push(make(images.host, "hub", ENTRIES), "hub:1")
        images.define_image("mine", image, "autostart = false")
        images.cleat("pull", "mine")
    finally:
        hub.stop()
    (row,) = json.loads(images.cleat("images", "--json").stdout)
    assert (row["reference"], row["containers"], row["unpacked"]) == (image, ["mine"], True)
    images.cleat("start", "mine")
    images.host.run(f"rm {HOME}/.config/cleat/containers/mine.toml")
    images.cleat("prune")
    assert images.inside("mine", "cat /gone") == ["x"]
    images.cleat("stop", "mine")
    images.cleat("reload-agent")
    pruned = json.loads(images.cleat("prune", "--json").stdout)
    assert pruned["images"] == [image]
    assert pruned["bytes"] > 0
    assert images.host.run(f"ls {STATE}/images/trees").stdout == ""


def test_volumes_are_filled_from_images(images: Person) -> None:
    kept = mount(type="volume", source="kept", target="/data")
    source = make(images.host, "volumes", ENTRIES, Volumes={"/etc": {}})
    images.write("mine", definition(source) + kept)
    images.cleat("reload-agent")
    assert images.inside("mine", "stat -c '%u %a' /data /data/seed; echo y >/data/new; ls /etc/passwd") == [
        "33", "700", "33", "400", "/etc/passwd",
    ]  # fmt: skip
    images.cleat("restart", "mine")
    assert images.inside("mine", "ls /data") == ["new", "seed"]
    assert images.host.run(f"stat -c %u {STATE}/volumes/kept/_data/seed").stdout == f"{images.subordinate() + 32}\n"


def test_copies_are_removed_after_a_killed_agent(images: Person) -> None:
    images.define_image("mine", make(images.host, "killed", ENTRIES))
    before = images.status("mine")["id"]
    images.run("systemctl", "--user", "kill", "--signal=KILL", "cleat.service")
    images.host.wait_journal("CLEAT_EVENT=agent-started", f"_UID={images.uid}")
    assert images.inside("mine", "cat /data/seed") == ["x"]
    assert images.status("mine")["id"] == before
    # What a copy under way would leave, and a container that ended while nobody looked.
    images.run("systemctl", "--user", "stop", "cleat.service")
    images.run("systemctl", "--user", "kill", "--signal=KILL", "cleat-mine.scope")
    half = f"{OVERLAYS}/{'0' * 64}"
    images.host.run(f"cp -a {OVERLAYS}/{before} {half}")
    images.run("systemctl", "--user", "start", "cleat.service", timeout=60)
    images.cleat("start", "mine")
    after = images.status("mine")["id"]
    assert after != before
    assert images.host.run(f"ls {OVERLAYS}").stdout.split() == [after]


def test_without_subordinate_ids(images: Person) -> None:
    images.host.run("sed -i.kept d /etc/subuid")
    images.run("systemctl", "--user", "restart", "cleat.service", timeout=60)
    try:
        images.define_image("mine", make(images.host, "alone", ENTRIES))
        assert images.inside("mine", "stat -c '%u %a' /data /data/seed; cat /data/seed; echo y >/bin/own; id -u") == [
            "0", "700", "0", "400", "x0",
        ]  # fmt: skip
        images.cleat("stop", "mine")
        images.host.run(f"rm {HOME}/.config/cleat/containers/*")
        images.cleat("reload-agent")
        images.cleat("prune")
    finally:
        images.host.run(["mv", "/etc/subuid.kept", "/etc/subuid"])
        images.run("systemctl", "--user", "restart", "cleat.service", timeout=60)


def test_there_is_no_space_for_a_copy(images: Person) -> None:
    images.host.run(f"mount -t tmpfs -o size=1M,mode=0711,uid={images.uid} none {OVERLAYS}")
    try:
        images.define_image("mine", make(images.host, "large", [{"name": "large", "text": "x" * (2 << 20)}]))
        error = images.status("mine")["error"]
        assert "its image cannot be copied" in error
        assert "No space left on device" in error
        assert images.host.run(f"ls {OVERLAYS}").stdout == ""
    finally:
        images.host.run(["umount", OVERLAYS])


def test_an_id_that_is_not_mapped(images: Person) -> None:
    images.define_image("mine", make(images.host, "far", [{"name": "far", "text": "x", "uid": 3000000}]))
    error = images.status("mine")["error"]
    assert "cannot be unpacked" in error
    assert "/etc/subuid" in error
