# SPDX-License-Identifier: Apache-2.0
"""Every [cgroup] mode and manager: who lives where, and that nothing of it stays behind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.host.hosts import Host

LOOP = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"
CASES = [
    (runtime, manager, mode)
    for runtime in ("crun", "runc")
    for manager in ("systemd", "cgroupfs")
    for mode in ("split", "enabled", "no-conmon", "disabled")
    if not (runtime == "runc" and mode == "disabled")
]


def start(host: Host, runtime: str, manager: str, mode: str, more: str = "") -> None:
    root = host.rootfs("cgroups")
    host.definition(
        "web",
        f"""
rootfs = "{root}"
command = ["/bin/sh", "-c", {json.dumps(LOOP)}]
{more}
[cgroup]
mode = "{mode}"
manager = "{manager}"
[runtime]
name = "{runtime}"
""",
    )
    host.reload()


def groups(host: Host) -> tuple[str, str]:
    """The cgroups of payload and conmon."""
    status: dict[str, Any] = host.status("web")
    return tuple(  # type: ignore[return-value]
        host.run(["sed", "-n", "s/^0:://p", f"/proc/{status[key]}/cgroup"]).stdout.strip()
        for key in ("pid", "conmon_pid")
    )


def expected(manager: str, mode: str, container_id: str) -> tuple[str, str]:
    """Where payload and conmon shall be: the beginnings of their cgroups."""
    own = "/cleat.slice/cleat-web.scope" if manager == "systemd" else "/cleat/container-web"
    match manager, mode:
        case _, "split":
            return f"{own}/container", f"{own}/supervisor"
        case _, "disabled":
            return f"{own}/supervisor", f"{own}/supervisor"
        case "systemd", "enabled":
            return own, f"/cleat.slice/cleat-conmon-{container_id}.scope"
        case "systemd", _:
            return own, "/cleat.slice/cleat.conmon.scope"
        case _, "enabled":
            return own, f"/cleat/conmon-{container_id}"
        case _:
            return own, "/cleat/conmon"


@pytest.mark.parametrize(("runtime", "manager", "mode"), CASES)
def test_a_container_lives_through_all_of_it(clean: Host, runtime: str, manager: str, mode: str) -> None:
    start(clean, runtime, manager, mode)
    before = clean.status("web")
    for found, wanted in zip(groups(clean), expected(manager, mode, before["id"]), strict=True):
        assert found.startswith(wanted)
    assert clean.cleat("exec", "web", "--", "sh", "-c", "exit 5", check=False).returncode == 5
    clean.run(["systemctl", "restart", "cleat.service"], timeout=60)
    after = clean.status("web")
    assert (after["pid"], after["id"], after["state"]) == (before["pid"], before["id"], "running")
    clean.cleat("kill", "--signal", "KILL", "web")
    clean.wait_event("web", "backoff")
    clean.cleat("start", "web")
    assert clean.status("web")["id"] != before["id"]
    clean.cleat("stop", "web")
    clean.run("! find /sys/fs/cgroup/cleat /sys/fs/cgroup/cleat.slice -name '*web*' | grep .; ! pgrep -x conmon")


@pytest.mark.parametrize(
    ("manager", "mode"), [("systemd", "enabled"), ("systemd", "no-conmon"), ("systemd", "disabled")]
)
def test_stopping_the_scope_stops_the_container(clean: Host, manager: str, mode: str) -> None:
    start(clean, "crun", manager, mode)
    clean.run(["systemctl", "stop", "cleat-web.scope"])
    clean.wait_event("web", "stopped")
    assert clean.status("web")["state"] == "inactive"


def test_a_scope_made_by_the_runtime_has_the_definitions_rules(clean: Host) -> None:
    start(clean, "crun", "systemd", "enabled", more='service.kill_signal = "SIGINT"\nservice.timeout_stop_sec = "20s"')
    unit = clean.unit("cleat-web.scope", "KillSignal", "TimeoutStopUSec", "CollectMode")
    assert unit == {"KillSignal": "2", "TimeoutStopUSec": "35s", "CollectMode": "inactive-or-failed"}


def test_one_scope_holds_all_conmons_without_their_own(clean: Host) -> None:
    start(clean, "crun", "systemd", "no-conmon")
    text = clean.read("/etc/cleat/containers/web.toml")
    clean.definition("second", text)
    clean.reload()
    members = clean.run("cat /sys/fs/cgroup/cleat.slice/cleat.conmon.scope/supervisor/cgroup.procs").stdout.split()
    assert sorted(members) == sorted(str(clean.status(name)["conmon_pid"]) for name in ("web", "second"))
    clean.cleat("stop", "web")
    assert clean.status("second")["state"] == "running"


def test_limits_without_a_scope_are_refused(clean: Host) -> None:
    start(clean, "crun", "cgroupfs", "split", more='resources.ip_address_deny = ["any"]')
    entry = clean.wait_event("web", "failed-to-start")
    assert "cgroup.manager" in entry["MESSAGE"]


def test_runc_cannot_do_without_cgroups(clean: Host) -> None:
    start(clean, "runc", "systemd", "disabled")
    entry = clean.wait_event("web", "failed-to-start")
    assert "use crun" in entry["MESSAGE"]
