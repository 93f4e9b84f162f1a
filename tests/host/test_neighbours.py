# SPDX-License-Identifier: Apache-2.0
"""What cleat stands on goes wrong: conmon, the runtime, the bus, the manager, the space in /run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.host import samples

if TYPE_CHECKING:
    from tests.host.hosts import Host

CONMON, CRUN = "/usr/bin/conmon", "/usr/bin/crun"
BROKEN: dict[str, str] = {
    "missing": 'mv "$1" "$1.kept"',
    "not executable": 'cp -a "$1" "$1.kept" && chmod 644 "$1"',
    "too old": 'mv "$1" "$1.kept" && printf "#!/bin/sh\\necho $2 version 0.1\\n" >"$1" && chmod 755 "$1"',
    "mute": 'mv "$1" "$1.kept" && printf "#!/bin/sh\\nexit 0\\n" >"$1" && chmod 755 "$1"',
    "dying": 'mv "$1" "$1.kept" && printf "#!/bin/sh\\nkill -9 \\$\\$\\n" >"$1" && chmod 755 "$1"',
}


@pytest.fixture
def mended(clean: Host) -> Iterator[Host]:
    """Puts tools back in their places."""
    yield clean
    clean.run(f"for f in {CONMON} {CRUN}; do [ ! -e $f.kept ] || mv -f $f.kept $f; done")


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("tool", [CONMON, CRUN])
def test_a_broken_tool_is_named_and_its_return_noticed(mended: Host, tool: str, how: str) -> None:
    samples.run(mended, stays=samples.definition())
    before = samples.identity(mended, "stays")
    mended.run(["sh", "-c", BROKEN[how], "sh", tool, tool.rpartition("/")[2]])
    samples.add(mended, web=samples.service(samples.SERVICE, 'restart = "no"'))
    mended.cleat("reload-agent", check=False)
    status = mended.status("web")
    assert status["state"] == "failed"
    assert status["exit_code"] in (125, None)
    assert tool.rpartition("/")[2] in status["error"]
    assert samples.identity(mended, "stays") == before
    mended.run(["mv", "-f", f"{tool}.kept", tool])
    mended.cleat("start", "web")
    assert mended.status("web")["state"] == "running"
    assert samples.faults(mended) == []


def test_conmon_killed(clean: Host) -> None:
    samples.run(clean, web=samples.definition())
    before = clean.status("web")
    clean.run(["kill", "-9", str(before["conmon_pid"])])
    lost = clean.wait_event("web", "lost")
    assert lost["CODE"]
    clean.wait_event("web", "ready", since=None)
    clean.wait_journal("CLEAT_CONTAINER=web", "CLEAT_EVENT=backoff")
    clean.wait_journal(
        "CLEAT_CONTAINER=web", "CLEAT_EVENT=ready", where=lambda e: e["CONTAINER_ID_FULL"] != before["id"]
    )
    after = clean.status("web")
    assert after["id"] != before["id"]
    assert not clean.exists(f"/proc/{before['pid']}")
    assert not clean.exists(f"/run/cleat/b/{before['id']}")


def test_a_conmon_that_does_not_get_as_far_as_the_command(mended: Host) -> None:
    """Nothing of it is left, not even an fd in the agent."""
    samples.run(mended, web=samples.definition())
    mended.run(["mv", CONMON, f"{CONMON}.kept"])
    refuses = f'#!/bin/sh\ncase "$*" in *--exec-attach*) exit 3 ;; esac\nexec {CONMON}.kept "$@"\n'
    mended.write(CONMON, refuses, 0o755)
    failed = mended.cleat("exec", "web", "--", "true", check=False)
    assert failed.returncode == 125
    assert "conmon exited with status 3" in failed.stderr
    mended.run("! find /run/cleat/b -path '*/exec/*' | grep .")


def test_the_runtime_goes_while_a_container_runs(mended: Host) -> None:
    samples.run(mended, web=samples.definition())
    mended.run(["mv", CRUN, f"{CRUN}.kept"])
    mended.cleat("stop", "web")
    assert mended.status("web")["state"] == "inactive"
    mended.run(["mv", f"{CRUN}.kept", CRUN])
    mended.cleat("start", "web")
    assert mended.status("web")["state"] == "running"


def test_the_runtime_is_gone_when_the_agent_comes(mended: Host) -> None:
    """As in the middle of an upgrade of its package."""
    samples.run(mended, web=samples.definition())
    before = samples.identity(mended, "web")
    mended.run(["mv", CRUN, f"{CRUN}.kept"])
    samples.agent_restarted(mended)
    assert samples.identity(mended, "web") == before
    mended.run(["mv", f"{CRUN}.kept", CRUN])
    assert mended.cleat("exec", "web", "--", "echo", "here").stdout == "here\n"
    mended.cleat("stop", "web")
    assert mended.status("web")["exit_code"] == 0


def test_the_bus_is_restarted(clean: Host) -> None:
    samples.run(clean, web=samples.definition(), other=samples.definition())
    before = {name: samples.identity(clean, name) for name in ("web", "other")}
    clean.run(["systemctl", "restart", "dbus.service"])
    clean.wait_journal("CLEAT_EVENT=bus-back")
    assert {name: samples.identity(clean, name) for name in before} == before
    clean.run(["systemctl", "stop", "cleat-web.scope"])
    clean.wait_event("web", "stopped")
    samples.add(clean, new=samples.definition())
    clean.reload()
    assert samples.states(clean) == {"web": "inactive", "other": "running", "new": "running"}
    clean.cleat("restart", "other")
    assert samples.faults(clean) == []


def test_containers_end_while_the_bus_is_mute(clean: Host) -> None:
    samples.run(clean, web=samples.service(samples.SERVICE, 'restart = "no"'), again=samples.definition())
    pids = [clean.status(name)["pid"] for name in ("web", "again")]
    clean.run(["systemctl", "kill", "--signal=STOP", "dbus.service"])
    try:
        clean.run(f"kill -9 {pids[0]} {pids[1]}")
        for name in ("web", "again"):
            clean.wait_event(name, "exited")
    finally:
        clean.run(["systemctl", "kill", "--signal=CONT", "dbus.service"])
    clean.wait_journal(
        "CLEAT_CONTAINER=again", "CLEAT_EVENT=ready", where=lambda _: clean.status("again")["restarts"] > 0
    )
    assert samples.states(clean) == {"web": "failed", "again": "running"}


def test_the_manager_executes_itself_anew(clean: Host) -> None:
    samples.run(clean, web=samples.definition())
    before = samples.identity(clean, "web")
    clean.run(["systemctl", "daemon-reexec"])
    assert samples.identity(clean, "web") == before
    samples.add(clean, new=samples.definition())
    clean.reload()
    clean.run(["systemctl", "stop", "cleat-web.scope"])
    clean.wait_event("web", "stopped")
    assert samples.states(clean) == {"web": "inactive", "new": "running"}


@pytest.fixture
def little_space(clean: Host) -> Iterator[Host]:
    """/run/cleat is a file system of its own that a test can fill."""
    clean.run("systemctl stop cleat.service; mount -t tmpfs -o size=2m,mode=711 little /run/cleat")
    clean.run("systemctl restart cleat-executor.socket")
    clean.run(["systemctl", "start", "cleat.service"])
    yield clean
    clean.run("rm -f /etc/cleat/containers/*; rm -f /run/cleat/ballast; cleat reload-agent", check=False)
    clean.run("systemctl stop cleat.service; umount -l /run/cleat")
    clean.run("systemctl restart cleat-executor.socket cleat.service")


def test_no_space_is_said_and_survived(little_space: Host) -> None:
    host = little_space
    samples.run(host, stays=samples.definition())
    before = samples.identity(host, "stays")
    host.run("dd if=/dev/zero of=/run/cleat/ballast bs=4k 2>/dev/null", check=False)
    samples.add(host, web=samples.service(samples.SERVICE, 'restart = "no"'))
    host.cleat("reload-agent", check=False)
    status: dict[str, Any] = host.status("web")
    assert status["state"] == "failed"
    assert "No space left" in status["error"]
    assert samples.identity(host, "stays") == before
    host.cleat("stop", "stays")
    assert host.status("stays")["state"] == "inactive"
    host.run(["rm", "/run/cleat/ballast"])
    for name in ("web", "stays"):
        host.cleat("start", name)
    assert samples.states(host) == {"web": "running", "stays": "running"}
    assert samples.faults(host) == []
