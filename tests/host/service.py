# SPDX-License-Identifier: Apache-2.0
"""A container that runs payload.py: Python out of the host's own /usr, steered over a socket in a shared folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.host.nspawn import HERE

if TYPE_CHECKING:
    from tests.host.hosts import Entry, Host

ROOT = "/srv/python"
_MAKE_ROOT = f"""
mkdir -p {ROOT}/usr {ROOT}/proc {ROOT}/sys {ROOT}/dev {ROOT}/tmp {ROOT}/run {ROOT}/etc {ROOT}/ctl
cd {ROOT}
for folder in bin sbin lib lib64; do ln -sfn usr/$folder $folder; done
echo root:x:0:0:root:/root:/bin/sh >etc/passwd
echo root:x:0: >etc/group
"""
_TELL = """
import socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1] + "/control")
stream = client.makefile("rw")
for line in sys.argv[2:]:
    stream.write(line + "\\n")
    stream.flush()
    print(stream.readline() or "null", end="" if line else None, flush=True)
"""


@dataclass
class Service:
    """The container `name`. `toml` is its tables besides root, command and mounts."""

    host: Host
    name: str

    @property
    def folder(self) -> str:
        return f"/run/payloads/{self.name}"

    def define(self, toml: str = "", *, at_start: str = "", keys: str = "") -> Service:
        """Write the definition; the agent is not told. `keys` are top-level keys, `at_start` what it notifies then."""
        self.host.run(_MAKE_ROOT)
        self.host.write(f"{ROOT}/payload.py", (HERE / "payload.py").read_text(encoding="utf-8"))
        self.host.run(f"mkdir -p {self.folder} && rm -f {self.folder}/datagrams")
        self.host.definition(self.name, self.text(toml, at_start=at_start, keys=keys))
        return self

    def text(self, toml: str = "", *, at_start: str = "", keys: str = "") -> str:
        return f"""
            rootfs = "{ROOT}"
            command = ["/usr/bin/python3", "-B", "/payload.py", "/ctl"]
            environment = {{ AT_START = {json.dumps(at_start)} }}
            {keys}
            {toml}
            [[mount]]
            source = "/usr"
            target = "/usr"
            read_only = true
            [[mount]]
            source = "{self.folder}"
            target = "/ctl"
        """

    def started(self, *, since: str | None = None) -> Entry:
        """Wait until its program says that it listens."""
        return self.host.wait_journal(
            f"CONTAINER_NAME={self.name}",
            since=since,
            where=lambda entry: entry["MESSAGE"].strip() == "payload started",
        )

    def tell(self, *commands: str) -> list[Any]:
        """Give it commands, see payload.py; its answers."""
        out = self.host.run(["python3", "-c", _TELL, self.folder, *commands]).stdout
        return [json.loads(line) for line in out.splitlines()]

    def notify(self, text: str) -> None:
        """Have it notify, and wait until the agent has taken that in."""
        assert self.tell(f"notify {text}", "barrier") == ["sent", "handled"]

    def event(self, event: str, *, since: str | None = None) -> Entry:
        return self.host.wait_event(self.name, event, since=since)

    @property
    def status(self) -> Any:
        return self.host.status(self.name)

    def datagrams(self) -> list[str]:
        return self.host.run(f"cat {self.folder}/datagrams 2>/dev/null || true").stdout.splitlines()


def kill_agent(host: Host) -> None:
    """kill -9 of the agent, and wait for the next one to be ready."""
    mark = host.cursor()
    pid = host.unit("cleat.service", "MainPID")["MainPID"]
    host.run(["kill", "-9", pid])
    host.wait_journal("CLEAT_EVENT=agent-started", since=mark)
    host.run(["systemctl", "start", "cleat.service"])


def stored(host: Host) -> list[str]:
    """What systemd keeps for the agent, by name."""
    lines = host.run(["systemd-analyze", "fdstore", "--json=short", "cleat.service"], check=False).stdout
    return sorted(row["fdname"] for row in json.loads(lines or "[]")) if lines.startswith("[") else []
