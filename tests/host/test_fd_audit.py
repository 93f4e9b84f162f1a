# SPDX-License-Identifier: Apache-2.0
"""What a container is started with, to the last fd, variable, capability and mount; the audit would see more."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.host.hosts import audit
from tests.host.isolation import Json, running, spec

if TYPE_CHECKING:
    from tests.host.hosts import Host

RUNTIMES = pytest.mark.parametrize("runtime", ["crun", "runc"])
SOCKETS = (
    '[[socket]]\nname = "a"\nlisten_stream = "127.0.0.1:7601"\n[[socket]]\nname = "b"\nlisten_stream = "/run/h.sock"'
)


def _links(host: Host, pid: int) -> dict[int, str]:
    script = f"cd /proc/{pid}/fd && for fd in *; do echo $fd $(readlink $fd); done"
    pairs = (line.split(maxsplit=1) for line in host.run(script).stdout.splitlines())
    return {int(number): target for number, target in pairs}


@RUNTIMES
@pytest.mark.parametrize("keys", ["", 'user = "www-data"', "[security]\nprivileged = true", "terminal = true"])
def test_no_fd_but_the_standard_streams(clean: Host, runtime: str, keys: str) -> None:
    pid = running(clean, "bare", keys, runtime=runtime)
    assert set(_links(clean, pid)) == {0, 1, 2}


@RUNTIMES
def test_declared_sockets_and_no_further_fd(clean: Host, runtime: str) -> None:
    pid = running(clean, "served", SOCKETS, runtime=runtime)
    links = _links(clean, pid)
    assert set(links) == {0, 1, 2, 3, 4}
    assert all(links[fd].startswith("socket:") for fd in (3, 4))


@RUNTIMES
@pytest.mark.parametrize("health", [False, True])
def test_executed_commands_get_no_fd_of_anybody(clean: Host, runtime: str, health: bool) -> None:  # noqa: FBT001
    # The shell opens its script's folder itself, as the last one.
    look = "ls -l /proc/self/fd | sed -n 's/.* \\\\([0-9]*\\\\) -> \\\\(.*\\\\)/\\\\1 \\\\2/p'"
    check = f'[health]\ncommand = ["/bin/sh", "-c", "{look}; false"]\nretries = 1\ninterval_sec = "0.2s"'
    running(clean, "bare", f"{check}\n{SOCKETS}" if health else SOCKETS, runtime=runtime)
    if health:
        clean.wait_event("bare", "unhealthy")
        output = clean.status("bare")["health_output"]
    else:
        output = clean.cleat("exec", "bare", "--", "sh", "-c", look.replace("\\\\", "\\")).stdout
    lines = output.replace("; ", "\n").splitlines()
    links = dict(line.split(maxsplit=1) for line in lines if not line.startswith("ls:"))
    assert {number for number, target in links.items() if not target.startswith("/proc/")} == {"0", "1", "2"}


@RUNTIMES
def test_the_environment_is_the_spec_s(clean: Host, runtime: str) -> None:
    clean.run(["systemctl", "set-environment", "LEAK=of-the-manager"])
    try:
        clean.run(["systemctl", "restart", "cleat.service"])
        pid = running(clean, "bare", 'environment = { MINE = "1" }', runtime=runtime)
    finally:
        clean.run(["systemctl", "unset-environment", "LEAK"])
        clean.run(["systemctl", "restart", "cleat.service"])
    found = dict(item.split("=", 1) for item in clean.read(f"/proc/{pid}/environ").split("\0") if item)
    assert set(found) - {"HOME"} == {"PATH", "HOSTNAME", "container", "MINE"}
    # Neither conmon, from which a runtime might inherit it.
    conmon = clean.read(f"/proc/{clean.status('bare')['conmon_pid']}/environ")
    names = {item.partition("=")[0] for item in conmon.split("\0") if item}
    assert names == {"PATH", "LC_CTYPE", "_OCI_SYNCPIPE", "_OCI_STARTPIPE"}


@RUNTIMES
@pytest.mark.parametrize("user", ["0", "www-data"])
def test_capabilities_are_the_spec_s(clean: Host, runtime: str, user: str) -> None:
    pid = running(clean, "bare", f'user = "{user}"', runtime=runtime)
    status = dict(line.partition(":\t")[::2] for line in clean.read(f"/proc/{pid}/status").splitlines())
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert int(status["CapBnd"], 16).bit_count() == 11
    held = 11 if user == "0" else 0
    assert int(status["CapEff"], 16).bit_count() == int(status["CapPrm"], 16).bit_count() == held
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert audit(clean) == []


def test_the_audit_sees_too_much(clean: Host) -> None:
    running(clean, "bare")
    folder = f"/run/cleat/b/{clean.status('bare')['id']}"
    text = clean.read(f"{folder}/config.json")

    def seen(config: Json) -> str:
        clean.write(f"{folder}/config.json", json.dumps(config), mode=0o600)
        return "\n".join(audit(clean))

    config = spec(clean, "bare")
    config["process"]["capabilities"]["bounding"].remove("CAP_CHOWN")
    config["mounts"] = [mount for mount in config["mounts"] if mount["destination"] != "/etc/hosts"]
    found = seen(config)
    assert "CapBnd: ['CAP_CHOWN']" in found
    assert "mount: /etc/hosts" in found
    clean.write(f"{folder}/config.json", text, mode=0o600)
    # A process of the host in the payload's place: its root and mounts are not the container's.
    pidfile = clean.read(f"{folder}/pidfile")
    with clean.start(["sh", "-c", "exec 7</etc/hostname; exec env INVOCATION_ID=1 sleep 60"]) as process:
        assert process.stdout is not None
        pid = clean.run('until pgrep -f -x -n "sleep 60"; do :; done | tail -n 1').stdout.strip()
        clean.write(f"{folder}/pidfile", pid)
        found = "\n".join(audit(clean))
        clean.write(f"{folder}/pidfile", pidfile)
    assert "environment: INVOCATION_ID" in found
    assert "has no seccomp filter" in found
