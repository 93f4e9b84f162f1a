# SPDX-License-Identifier: Apache-2.0
"""The agent is confined, containers are not for that: they have what their definitions say, no less and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.host.isolation import exec_in, refusals, running

if TYPE_CHECKING:
    from tests.host.hosts import Host

RUNTIMES = pytest.mark.parametrize("runtime", ["crun", "runc"])
CAP_SETUID, CAP_SYS_ADMIN = 7, 21
KEPT_FROM_ALL = ("CAP_SYS_BOOT", "CAP_SYS_PACCT", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND")


def _status(host: Host, pid: str | int) -> dict[str, str]:
    return dict(line.partition(":\t")[::2] for line in host.read(f"/proc/{pid}/status").splitlines())


@RUNTIMES
def test_nothing_of_it_is_handed_on(clean: Host, runtime: str) -> None:
    toml = '[security]\nprivileged = true\nno_new_privileges = false\n[[mount]]\nsource = "/home"\ntarget = "/h"'
    pid = running(clean, "free", toml, runtime=runtime)
    status = _status(clean, pid)
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("0", "0")
    executor = _status(clean, clean.unit("cleat-executor.service", "MainPID")["MainPID"])
    assert status["CapBnd"] == status["CapEff"] == executor["CapBnd"]
    # A device that the agent itself may not open; executed commands as well as the first process.
    assert exec_in(clean, "free", "exec 3<>/dev/fuse && echo opened") == "opened\n"
    assert clean.run(f"readlink /proc/{pid}/root && ls /proc/{pid}/root/h").returncode == 0
    limits = clean.read(f"/proc/{pid}/personality")
    assert int(limits, 16) == 0


def test_the_agent_itself_can_do_little(clean: Host) -> None:
    agent = _status(clean, clean.unit("cleat.service", "MainPID")["MainPID"])
    assert (agent["Seccomp"], agent["NoNewPrivs"]) == ("2", "1")
    has = int(agent["CapBnd"], 16)
    assert not has >> CAP_SYS_ADMIN & 1
    assert not has >> CAP_SETUID & 1
    last = clean.run(["systemd-analyze", "security", "--no-pager", "cleat.service"]).stdout.splitlines()[-1]
    assert float(last.split(":")[1].split()[0]) < 5.0


def test_the_executor_hears_nobody_but_root(clean: Host) -> None:
    assert clean.run(["stat", "-c", "%a %U", "/run/cleat/executor.sock"]).stdout == "600 root\n"


def test_a_lost_executor_is_replaced_and_costs_no_container(clean: Host) -> None:
    pid = running(clean, "stays")
    clean.run(["systemctl", "kill", "--signal=KILL", "cleat-executor.service"])
    assert exec_in(clean, "stays", "echo here") == "here\n"
    running(clean, "later")
    assert clean.status("stays")["pid"] == pid


def test_without_an_executor_containers_are_taken_over_and_it_is_said(clean: Host) -> None:
    pid = running(clean, "stays")
    clean.run("systemctl stop cleat.service cleat-executor.socket; systemctl mask --runtime cleat-executor.socket")
    try:
        clean.run(["systemctl", "start", "cleat.service"])
        assert clean.status("stays")["pid"] == pid
        said = clean.cleat("exec", "stays", "--", "true", check=False)
        assert said.returncode == 1
        assert "cannot reach the executor" in said.stderr
        assert "systemctl restart cleat-executor.socket" in said.stderr
    finally:
        clean.run("systemctl unmask --runtime cleat-executor.socket; systemctl start cleat-executor.socket")
    assert exec_in(clean, "stays", "echo here") == "here\n"


def test_a_new_agent_has_a_new_executor(clean: Host) -> None:
    before = clean.unit("cleat-executor.service", "MainPID")["MainPID"]
    clean.run(["systemctl", "restart", "cleat.service"])
    pid = running(clean, "fresh")
    after = clean.unit("cleat-executor.service", "MainPID")["MainPID"]
    assert after not in ("0", before)
    # Nothing that was started stays with it.
    assert clean.run(["pgrep", "--parent", after], check=False).stdout == ""
    assert pid


def test_devices_are_closed_to_what_unpacks_images(clean: Host) -> None:
    unit = clean.unit("cleat-executor.service", "DevicePolicy", "DeviceAllow")
    assert unit["DevicePolicy"] == "closed"
    # The same rules for another command: nodes can be made, as image layers ask for, and not opened.
    rules = ["DevicePolicy=closed", "DeviceAllow=char-* m", "DeviceAllow=block-* m"]
    options = [word for rule in rules for word in ("-p", rule)]
    script = "mknod /run/probe c 10 229 && : </dev/fuse"
    result = clean.run(["systemd-run", "--quiet", "--pipe", *options, "sh", "-c", script], check=False)
    clean.run(["rm", "/run/probe"])
    assert result.returncode != 0
    assert "not permitted" in result.stderr


def test_capabilities_that_nobody_gets_are_named(clean: Host) -> None:
    wishes = {name.lower().replace("_", "-"): f'[security]\ncapabilities_add = ["{name}"]' for name in KEPT_FROM_ALL}
    said = refusals(clean, wishes)
    assert len(said) == len(KEPT_FROM_ALL)
    for name, text in said.items():
        assert name.upper().replace("-", "_") in text
        assert "CapabilityBoundingSet" in text
