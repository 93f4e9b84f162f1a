# SPDX-License-Identifier: Apache-2.0
"""The sandbox of cleat.service is the agent's own: containers have what their definitions say, no less and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.host.isolation import exec_in, refusals, running

if TYPE_CHECKING:
    from tests.host.hosts import Host

RUNTIMES = pytest.mark.parametrize("runtime", ["crun", "runc"])
KEPT_FROM_ALL = ("CAP_SYS_BOOT", "CAP_SYS_PACCT", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND")


def _status(host: Host, pid: str | int) -> dict[str, str]:
    return dict(line.partition(":\t")[::2] for line in host.read(f"/proc/{pid}/status").splitlines())


@RUNTIMES
def test_nothing_of_it_is_handed_on(clean: Host, runtime: str) -> None:
    toml = '[security]\nprivileged = true\nno_new_privileges = false\n[[mount]]\nsource = "/home"\ntarget = "/h"'
    pid = running(clean, "free", toml, runtime=runtime)
    status = _status(clean, pid)
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("0", "0")
    agent = _status(clean, clean.unit("cleat.service", "MainPID")["MainPID"])
    assert status["CapBnd"] == status["CapEff"] == agent["CapBnd"]
    # A device that the agent itself may not open; executed commands as well as the first process.
    assert exec_in(clean, "free", "exec 3<>/dev/fuse && echo opened") == "opened\n"
    assert clean.run(f"readlink /proc/{pid}/root && ls /proc/{pid}/root/h").returncode == 0
    limits = clean.read(f"/proc/{pid}/personality")
    assert int(limits, 16) == 0


def test_devices_are_closed_to_the_agent(clean: Host) -> None:
    unit = clean.unit("cleat.service", "DevicePolicy", "DeviceAllow")
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
