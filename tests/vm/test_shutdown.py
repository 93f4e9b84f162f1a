# SPDX-License-Identifier: Apache-2.0
"""Reboots: every container is stopped by its own rules, in reverse order, before the agent and the bus go."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.hosts import Entry, Host
    from tests.vm.qemu import Booted

LOG = "/var/lib/shutdown"
SLOW_SEC, DEAF_SEC = 5.0, 2.0
# What a native service that takes as long would cost, and room for an emulated machine.
LIMIT_SEC = 60.0

SAY = 'say() { read up _ </proc/uptime; echo "$up $1" >>/log/$NAME; }'
DEFINITION = """\
rootfs = "/srv/bb"
command = ["/bin/sh", "-c", '''{say}; {trap}; say begin; echo begun; while :; do sleep 1000 & wait; done''']
environment = {{ NAME = "{name}" }}
[[mount]]
type = "bind"
source = "{log}"
target = "/log"
{more}
"""


def slowly(seconds: float) -> str:
    """Takes its time, and does not begin anew at a second signal: systemd's own reaches a container that was taken over
    twice, once directly and once through conmon.
    """
    return f"""trap 'trap "" TERM; say stop; sleep {seconds:g}; say end; exit 0' TERM"""


def definition(name: str, trap: str = "trap 'say stop; exit 0' TERM", head: str = "", more: str = "") -> str:
    return head + DEFINITION.format(say=SAY, trap=trap, name=name, log=LOG, more=more)


DEFINITIONS = {
    "db": definition("db"),
    "web": definition("web", trap=slowly(1), head='requires = ["db"]\n'),
    "cache": definition("cache", trap=slowly(1), head='after = ["db"]\n'),
    "slow": definition("slow", trap=slowly(SLOW_SEC)),
    "quit": definition(
        "quit", trap="trap '' TERM; trap 'say quit; exit 0' QUIT", more='[service]\nkill_signal = "SIGQUIT"'
    ),
    "deaf": definition("deaf", trap="trap 'say stop' TERM", more=f"[service]\ntimeout_stop_sec = {DEAF_SEC:g}"),
    "apart": definition("apart", head='after = ["db"]\n', more='[cgroup]\nmode = "enabled"'),
    "handle": definition("handle", head="autostart = false\n"),
}


def is_begun(entry: Entry) -> bool:
    return bool(str(entry["MESSAGE"]).strip() == "begun")


@pytest.fixture
def busy(vm: Host) -> Iterator[Host]:
    """All containers of this file are up, one of them by its enabled handle; afterwards none of them is left."""
    vm.rootfs("bb")
    vm.run(["mkdir", "-p", LOG])
    vm.run(f"rm -f {LOG}/*")
    for name, text in DEFINITIONS.items():
        vm.definition(name, text)
    mark = vm.cursor()
    vm.reload()
    vm.run(["systemctl", "enable", "--now", "cleat@handle.service"])
    for name in DEFINITIONS:
        vm.wait_journal(f"CONTAINER_NAME={name}", since=mark, timeout=60, where=is_begun)
    yield vm
    vm.run(["systemctl", "start", "cleat.service"])
    vm.run(["systemctl", "disable", "--now", "cleat@handle.service"])
    for name in DEFINITIONS:
        vm.remove_definition(name)
    vm.reload()
    vm.run(["rm", "-rf", LOG])


def reboot(vm: Host) -> None:
    vm.run(["sync"])
    cast("Booted", vm.machine).reboot()


def said(vm: Host, name: str) -> dict[str, float]:
    """When a container said what, in seconds of uptime before the reboot."""
    words: dict[str, float] = {}
    for line in vm.read(f"{LOG}/{name}").splitlines():
        up, word = line.split()
        if word == "begin" and len(words) > 1:
            break  # the next boot's
        words[word] = float(up)
    return words


def last_boot(vm: Host, *match: str) -> list[Entry]:
    lines = vm.run(["journalctl", "-b", "-1", "-q", "-a", "-o", "json", *match]).stdout.splitlines()
    return [json.loads(line) for line in lines]


def usec(entry: Entry) -> int:
    return int(entry["__MONOTONIC_TIMESTAMP"])


def check_duration(vm: Host) -> None:
    began = next(e for e in last_boot(vm, "SYSLOG_IDENTIFIER=systemd-logind") if "reboot" in e["MESSAGE"].lower())
    (ended,) = last_boot(vm, "-n1")
    assert (usec(ended) - usec(began)) / 1e6 < LIMIT_SEC


def check_rules(vm: Host) -> None:
    slow, deaf, quit_ = said(vm, "slow"), said(vm, "deaf"), said(vm, "quit")
    assert SLOW_SEC <= slow["end"] - slow["stop"] < SLOW_SEC + 3
    assert set(deaf) == {"begin", "stop"}
    assert set(quit_) == {"begin", "quit"}
    for name in ("apart", "handle", "db", "web", "cache"):
        assert "stop" in said(vm, name), name


def check_order(vm: Host) -> None:
    db = said(vm, "db")["stop"]
    assert said(vm, "web")["end"] <= db
    assert said(vm, "cache")["end"] <= db
    assert said(vm, "apart")["stop"] <= db


def check_agent_goes_last(vm: Host) -> None:
    stopped = {e["CLEAT_CONTAINER"]: e for e in last_boot(vm, "CLEAT_EVENT=stopped")}
    assert stopped.keys() >= DEFINITIONS.keys()
    gone = last_boot(vm, "CLEAT_EVENT=agent-stopping")[-1]
    assert max(map(usec, stopped.values())) < usec(gone)
    killed = {e["CLEAT_CONTAINER"] for e in last_boot(vm, "CLEAT_EVENT=stop-signal-ignored")}
    assert killed == {"deaf"}


def check_back(vm: Host) -> None:
    """The next boot has started everything again, what has no autostart by its handle."""
    vm.run(["systemctl", "is-active", *(f"cleat@{name}.service" for name in ("handle", "db", "web"))])
    assert {row["name"]: row["state"] for row in vm.status()} == dict.fromkeys(DEFINITIONS, "running")


def test_each_by_its_own_rules(busy: Host) -> None:
    reboot(busy)
    check_rules(busy)
    check_order(busy)
    check_agent_goes_last(busy)
    check_duration(busy)
    check_back(busy)


def test_with_containers_that_were_taken_over(busy: Host) -> None:
    busy.run(["systemctl", "restart", "cleat.service"])
    reboot(busy)
    check_rules(busy)
    check_order(busy)
    check_agent_goes_last(busy)
    check_duration(busy)


def test_without_an_agent(busy: Host) -> None:
    """systemd stops the scopes by itself, with each one's signal, timeout and order."""
    busy.run(["systemctl", "stop", "cleat.service"])
    reboot(busy)
    slow = said(busy, "slow")
    assert SLOW_SEC <= slow["end"] - slow["stop"] < SLOW_SEC + 3
    assert "quit" in said(busy, "quit")
    check_order(busy)
    check_duration(busy)
