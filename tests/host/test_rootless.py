# SPDX-License-Identifier: Apache-2.0
"""The agent of a user who is not root, under `systemctl --user`, with a bus of their own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.hosts import Host, Result

USER = "tess"
HOME = f"/home/{USER}"
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
        path = f"{HOME}/.config/cleat/containers/{name}.toml"
        self.host.write(path, head + keys + bracket + tables)
        self.host.run(["chown", "-R", f"{USER}:", f"{HOME}/.config"])
        self.cleat("reload-agent", check=False)

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
    left = person.run("find", f"/run/user/{person.uid}/cleat/b", "-mindepth", "1").stdout
    assert left == ""
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
        ('rootfs_writable = true\n[[mount]]\ntype = "volume"\nsource = "v"\ntarget = "/v"', "mount"),
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
