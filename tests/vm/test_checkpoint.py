# SPDX-License-Identifier: Apache-2.0
"""Checkpoint and restore with a real criu: memory, files and the record go on where they were."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.host.hosts import Host

COUNT = "i=0; trap 'exit 0' TERM; while :; do i=$((i+1)); echo $i >/tmp/n; echo tick $i; sleep 0.2; done"
# The one connection that the server takes; who ends it ends both.
TALK = """\
tail -f /dev/null | nc -l -p 7000 & until grep -q ' 0A ' /proc/net/tcp6; do sleep 0.1; done
i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.2; done | nc 127.0.0.1 7000; echo ended
"""
ARCHIVE = "/var/tmp/counter.tar"


@pytest.fixture
def counter(clean: Host) -> Host:
    if clean.run("ldconfig -p | grep libcriu.so.2", check=False).returncode:
        pytest.skip("libcriu2 is not in the image: crun cannot checkpoint")
    define(clean, "counter")
    tick(clean, 3)
    return clean


def define(host: Host, name: str, script: str = COUNT, tables: str = "") -> None:
    root = host.rootfs("counter")
    host.definition(name, f'rootfs = "{root}"\ncommand = ["/bin/sh", "-c", {json.dumps(script)}]\n{tables}')
    host.reload()


def tick(host: Host, least: int) -> int:
    """Waits until it has counted to `least`; returns how far it is."""
    match = "CONTAINER_NAME=counter"
    wanted = host.wait_journal(match, where=lambda e: e["MESSAGE"].startswith("tick") and number(e["MESSAGE"]) >= least)
    return number(wanted["MESSAGE"])


def number(message: str) -> int:
    return int(message.split()[1])


def last_tick(host: Host) -> int:
    return max(number(e["MESSAGE"]) for e in host.journal("CONTAINER_NAME=counter") if e["MESSAGE"].startswith("tick"))


def test_it_goes_on_where_it_was(counter: Host) -> None:
    before = counter.status("counter")["id"]
    counter.cleat("checkpoint", "counter", timeout=120)
    assert counter.status("counter")["state"] == "inactive"
    reached = last_tick(counter)
    counter.cleat("restore", "counter", timeout=120)
    counter.wait_event("counter", "restored")
    assert counter.status("counter")["id"] != before
    assert tick(counter, reached + 2) <= reached + 50
    assert int(counter.cleat("exec", "counter", "--", "cat", "/tmp/n").stdout) > reached
    assert "1" in [
        str(number(e["MESSAGE"])) for e in counter.journal("CONTAINER_NAME=counter") if "tick" in e["MESSAGE"]
    ]
    counter.run(["systemctl", "restart", "cleat.service"], timeout=60)
    assert counter.status("counter")["state"] == "running"
    counter.cleat("restart", "counter")
    assert not counter.exists("/var/lib/cleat/checkpoints/counter")


def test_it_can_be_left_running_and_moved_by_archive(counter: Host) -> None:
    counter.cleat("checkpoint", "--leave-running", "--export", ARCHIVE, "counter", timeout=120)
    reached = last_tick(counter)
    assert counter.run(["stat", "-c", "%a %U", ARCHIVE]).stdout == "600 root\n"
    assert counter.status("counter")["state"] == "running"
    tick(counter, reached + 2)
    counter.cleat("stop", "counter")
    counter.run(["rm", "-r", "/var/lib/cleat/checkpoints/counter"])
    mark = counter.cursor()
    counter.cleat("restore", "--import", ARCHIVE, "counter", timeout=120)
    first = counter.wait_journal("CONTAINER_NAME=counter", since=mark, where=lambda e: e["MESSAGE"].startswith("tick"))
    assert number(first["MESSAGE"]) <= reached + 2
    counter.run(["rm", ARCHIVE])


def test_what_cannot_be_restored_says_why_and_stays_down(counter: Host) -> None:
    counter.cleat("checkpoint", "counter", timeout=120)
    counter.run("rm /var/lib/cleat/checkpoints/counter/image/core-1.img")
    result = counter.cleat("restore", "counter", timeout=120, check=False)
    assert result.returncode == 125
    assert "criu: " in result.stderr
    assert counter.status("counter")["state"] == "inactive"
    counter.run(["rm", "-r", "/var/lib/cleat/checkpoints/counter"])
    assert "no checkpoint" in counter.cleat("restore", "counter", check=False).stderr


def test_a_connection_goes_on(clean: Host) -> None:
    define(clean, "counter", TALK, '[network]\nmode = "private"\n')
    tick(clean, 3)
    result = clean.cleat("checkpoint", "counter", timeout=120, check=False)
    assert result.returncode == 125
    assert "tcp-established" in result.stderr
    assert clean.status("counter")["state"] == "running"
    clean.cleat("checkpoint", "--tcp-established", "counter", timeout=120)
    reached = last_tick(clean)
    clean.cleat("restore", "counter", timeout=120)
    tick(clean, reached + 2)
    assert "ended" not in [e["MESSAGE"].strip() for e in clean.journal("CONTAINER_NAME=counter")]


def test_with_runc(clean: Host) -> None:
    """Whose own networks criu locks with iptables only, which is not in the image."""
    define(clean, "counter", tables='[runtime]\nname = "runc"\n')
    tick(clean, 3)
    clean.cleat("checkpoint", "counter", timeout=120)
    reached = last_tick(clean)
    clean.cleat("restore", "counter", timeout=120)
    tick(clean, reached + 2)
    define(clean, "apart", tables='[runtime]\nname = "runc"\n[network]\nmode = "private"\n')
    result = clean.cleat("checkpoint", "apart", timeout=120, check=False)
    assert (result.returncode, clean.status("apart")["state"]) == (125, "running")
    assert "install iptables" in result.stderr


def test_a_changed_definition_is_refused(counter: Host) -> None:
    counter.cleat("checkpoint", "counter", timeout=120)
    counter.write("/etc/cleat/containers/counter.toml.d/changed.toml", 'description = "changed"\nautostart = false\n')
    counter.reload()
    counter.cleat("stop", "counter", check=False)
    assert "another definition" in counter.cleat("restore", "counter", check=False).stderr
    counter.run(["rm", "-r", "/var/lib/cleat/checkpoints/counter"])
