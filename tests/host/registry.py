# SPDX-License-Identifier: Apache-2.0
"""Images made in a test host, and a registry on its loopback to fetch them from."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Any

from tests.host.nspawn import HERE

if TYPE_CHECKING:
    from tests.host.hosts import Host

Entry = dict[str, Any]

ADDRESS = "127.0.0.1:5000"
LAYOUTS = "/var/tmp/layouts"
STORE = "/var/lib/cleat/images"

# What most of these containers run does not heed SIGTERM.
QUICK = '[service]\nrestart = "no"\ntimeout_stop_sec = "500ms"\n'

_CONFIG = f"""
version: 0.1
log: {{level: info}}
storage: {{filesystem: {{rootdirectory: /tmp/registry}}}}
http: {{addr: {ADDRESS}}}
"""

_APPLETS = ("sh", "sleep", "cat", "ls", "id", "echo", "pwd", "stat", "readlink", "touch", "true", "find", "env", "head")


def busybox() -> list[Entry]:
    """A layer that is a small system."""
    folders = ("bin", "etc", "tmp", "proc", "sys", "dev", "run")
    return [
        *({"name": f"{name}/", "dir": True} for name in folders),
        {"name": "bin/busybox", "file": "/usr/bin/busybox"},
        *({"name": f"bin/{applet}", "link": "busybox"} for applet in _APPLETS),
        {"name": "etc/passwd", "text": "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/srv:/bin/sh\n", "mode": 0o644},
        {"name": "etc/group", "text": "root:x:0:\nweb:x:33:\n", "mode": 0o644},
    ]


def make(host: Host, name: str, *layers: list[Entry], **config: Any) -> str:
    """Makes an image (busybox, then `layers`) and returns its reference; `config` as in the OCI spec."""
    layout = f"{LAYOUTS}/{name}"
    wanted = {
        "layout": layout,
        "tag": "t",
        "layers": [busybox(), *layers],
        "config": {"Cmd": ["/bin/sleep", "1000"], **config},
        "machine": platform.machine(),
    }
    host.write("/var/tmp/make_image.py", (HERE / "make_image.py").read_text(encoding="utf-8"))
    host.run(["rm", "-rf", layout])
    host.run(["python3", "/var/tmp/make_image.py"], stdin=json.dumps(wanted))
    return f"oci:{layout}:t"


class Registry:
    """docker-registry under the host's systemd. What is stored stays over stop and start."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def start(self) -> None:
        self.host.write("/etc/test-registry.yml", _CONFIG)
        mark = self.host.cursor()
        self.host.run(
            ["systemd-run", "--quiet", "--collect", "--unit=test-registry", "docker-registry", "serve",
             "/etc/test-registry.yml"]
        )  # fmt: skip
        self.host.wait_journal(
            "_SYSTEMD_UNIT=test-registry.service",
            since=mark,
            where=lambda entry: "listening on" in str(entry["MESSAGE"]),
        )

    def stop(self) -> None:
        self.host.run(["systemctl", "stop", "test-registry.service"], check=False)

    def push(self, source: str, name: str, *options: str) -> str:
        """Copies an image into the registry; returns its reference."""
        target = f"{ADDRESS}/{name}"
        self.host.run(["skopeo", "copy", "--dest-tls-verify=false", *options, source, f"docker://{target}"], timeout=60)
        return target


def definition(image: str, *lines: str, policy: str = "missing") -> str:
    """A definition that fetches without TLS and gives up at once."""
    head = "\n".join([f'image = "{image}"', *lines])
    return f'{head}\n\n[pull]\ntls_verify = false\nretry = 0\npolicy = "{policy}"\n\n{QUICK}'


def forget(host: Host) -> None:
    """No image, no volume and nothing half-made is left."""
    host.run(["cleat", "reload-agent"], check=False)
    host.run(f"rm -rf {STORE}/* /var/lib/cleat/volumes/* {LAYOUTS}")
