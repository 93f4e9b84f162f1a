# SPDX-License-Identifier: Apache-2.0
"""Joining a container's own stdio: both directions, several clients, the end, and where it cannot be."""

from __future__ import annotations

import json
import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.host.hosts import Host

BUS = ["busctl", "call", "org.cleat.Agent1", "/org/cleat/Agent1", "org.cleat.Agent1.Manager"]


def start(host: Host, command: str, more: str = "") -> None:
    root = host.rootfs("attach")
    host.definition("web", f'rootfs = "{root}"\ncommand = ["/bin/sh", "-c", {json.dumps(command)}]\n{more}\n')
    host.reload()


def test_what_is_typed_is_answered_and_the_exit_code_comes_back(clean: Host) -> None:
    start(clean, "while read x; do echo got $x; [ $x = end ] && exit 5; done", 'stdin = true\nservice.restart = "no"')
    result = clean.cleat("attach", "web", stdin="one\nend\n", check=False)
    assert result.stdout == "got one\ngot end\n"
    assert result.returncode == 5


def test_two_clients_get_the_same_output(clean: Host) -> None:
    start(clean, "while read x; do echo got $x; done", 'stdin = true\nservice.restart = "no"')
    with clean.start(["cleat", "attach", "web"]) as one, clean.start(["cleat", "attach", "--no-stdin", "web"]) as two:
        assert one.stdin is not None
        assert one.stdout is not None
        assert two.stdout is not None
        said: list[bytes] = []
        # There is no history: the first talks until the second has joined.
        while not select.select([two.stdout], [], [], 0.1)[0]:
            assert len(said) < 100
            said.append(b"got %d\n" % len(said))
            one.stdin.write(b"%d\n" % (len(said) - 1))
            one.stdin.flush()
            assert one.stdout.readline() == said[-1]
        assert two.stdout.readline() in said
        one.stdin.close()


def test_a_terminal_is_told(clean: Host) -> None:
    start(clean, "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done", "terminal = true")
    answer = clean.run([*BUS, "Attach", "s", "web"]).stdout.split()
    assert answer[0] == "ssb"
    assert answer[-1] == "true"
    assert clean.exists(answer[1].strip('"'))
    assert clean.exists(answer[2].strip('"'))


def test_passthrough_is_refused_with_the_reason(clean: Host) -> None:
    start(clean, "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done", '[log]\ndriver = "passthrough"')
    result = clean.cleat("attach", "web", check=False)
    assert "log.driver" in result.stderr
    assert "passthrough" in result.stderr


def test_a_container_that_is_down_cannot_be_joined(clean: Host) -> None:
    start(clean, "exit 0", "autostart = false")
    result = clean.cleat("attach", "web", check=False)
    assert result.returncode != 0
    assert "cleat start web" in result.stderr


MAPPED = 'terminal = true\n[security]\nuser_namespace = "map"\nuid_map = ["0:700000:65536"]\n'
AS_ITS_ROOT = ["setpriv", "--reuid=700000", "--regid=700000", "--clear-groups", "--"]


def test_only_root_can_attach_and_its_own_mapped_root_cannot_either(clean: Host) -> None:
    """A mapped root may pass through the bundle to its own files, and open nothing else there."""
    # The tree itself is an overlay, and its owners cannot be shifted.
    clean.run(["cp", "-a", clean.rootfs("attach"), "/var/lib/cleat/attach-root"])
    clean.definition("web", f'rootfs = "/var/lib/cleat/attach-root"\ncommand = ["/bin/sleep", "1000"]\n{MAPPED}')
    clean.reload()
    session = clean.cleat("exec", "-d", "web", "--", "sleep", "1000").stdout.strip()
    bundle = json.loads(clean.cleat("inspect", "web").stdout)["bundle"]
    for folder in (bundle, f"{bundle}/exec/{session}"):
        found = clean.run(["stat", "-c", "%F %a %U", f"{folder}/attach", f"{folder}/ctl", f"{folder}/winsz"])
        assert found.stdout.splitlines() == ["socket 700 root", "fifo 640 root", "fifo 640 root"]
        assert clean.run([*AS_ITS_ROOT, "ls", folder], check=False).returncode != 0
    assert clean.run(["stat", "-c", "%a %u:%g", bundle]).stdout == "710 0:700000\n"
    connect = ["socat", "-u", "/dev/null", f"UNIX-CONNECT:{bundle}/attach,type=5"]
    assert "Permission denied" in clean.run([*AS_ITS_ROOT, *connect], check=False).stderr
    for file in ("config.json", "ctl", "winsz", f"exec/{session}/process.json"):
        assert clean.run([*AS_ITS_ROOT, "cat", f"{bundle}/{file}"], check=False).returncode != 0, file
    # A file that is meant for it, and somebody else who is not.
    assert clean.run([*AS_ITS_ROOT, "cat", f"{bundle}/hostname"]).stdout == "web\n"
    stranger = ["setpriv", "--reuid=700001", "--regid=700001", "--clear-groups", "--", "cat", f"{bundle}/hostname"]
    assert clean.run(stranger, check=False).returncode != 0
    spec = json.loads(clean.cleat("inspect", "--spec", "web").stdout)
    assert spec["linux"]["uidMappings"] == [{"containerID": 0, "hostID": 700000, "size": 65536}]
    clean.cleat("stop", "-t", "0", "web")
    planned = json.loads(clean.cleat("inspect", "--spec", "web").stdout)
    assert planned["linux"]["uidMappings"] == spec["linux"]["uidMappings"]
    clean.run(["rm", "-r", "/var/lib/cleat/attach-root"])
