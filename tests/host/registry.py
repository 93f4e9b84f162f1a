# SPDX-License-Identifier: Apache-2.0
"""Images made in a test host, and a registry on its loopback to fetch them from."""

from __future__ import annotations

import base64
import json
import platform
from typing import TYPE_CHECKING, Any

from tests.host.nspawn import HERE

if TYPE_CHECKING:
    from tests.host.hosts import Host

Entry = dict[str, Any]

ADDRESS = "127.0.0.1:5000"
SECURE_ADDRESS = "127.0.0.1:5443"
USER, PASSWORD = "jo", "harbour"
LAYOUTS = "/var/tmp/layouts"
STORE = "/var/lib/cleat/images"

# What most of these containers run does not heed SIGTERM.
QUICK = '[service]\nrestart = "no"\ntimeout_stop_sec = "500ms"\n'

_CONFIG = """
version: 0.1
log: {{level: info}}
storage: {{filesystem: {{rootdirectory: /tmp/registry}}}}
http: {{addr: "{address}"{tls}}}
{auth}
"""
_TLS_FOLDER = "/etc/test-registry"
# An authority, and a certificate of it for the loopback.
_MAKE_CERTIFICATES = f"""
    mkdir -p {_TLS_FOLDER} && cd {_TLS_FOLDER}
    new='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30'
    openssl req -x509 $new -subj '/CN=Authority of a test' -keyout ca.key -out ca.crt
    openssl req -x509 $new -subj /CN=registry -addext subjectAltName=IP:127.0.0.1 -CA ca.crt -CAkey ca.key \\
        -keyout own.key -out own.crt
"""
# What `htpasswd -B` writes for PASSWORD.
_HTPASSWD = f"{USER}:$2y$05$abcdefghijklmnopqrstuuZ9hITkhSjgdPh1azpD9e5XbVlHeIfui\n"

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

    address = ADDRESS
    login: tuple[str, ...] = ("--dest-tls-verify=false",)

    def __init__(self, host: Host) -> None:
        self.host = host

    def config(self) -> str:
        return _CONFIG.format(address=self.address, tls="", auth="")

    def start(self) -> None:
        self.host.write("/etc/test-registry.yml", self.config())
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
        target = f"{self.address}/{name}"
        self.host.run(["skopeo", "copy", *self.login, *options, source, f"docker://{target}"], timeout=60)
        return target


class SecureRegistry(Registry):
    """One with a certificate of an authority that the host does not know, and one login."""

    address = SECURE_ADDRESS
    login: tuple[str, ...] = ("--dest-tls-verify=false", f"--dest-creds={USER}:{PASSWORD}")

    def config(self) -> str:
        tls = f", tls: {{certificate: {_TLS_FOLDER}/own.crt, key: {_TLS_FOLDER}/own.key}}"
        auth = f"auth: {{htpasswd: {{realm: test, path: {_TLS_FOLDER}/htpasswd}}}}"
        return _CONFIG.format(address=self.address, tls=tls, auth=auth)

    def start(self) -> None:
        self.host.run(_MAKE_CERTIFICATES)
        self.host.write(f"{_TLS_FOLDER}/htpasswd", _HTPASSWD)
        super().start()

    def stop(self) -> None:
        super().stop()
        self.trust(None)
        self.host.run(["rm", "-rf", _TLS_FOLDER])

    @property
    def authority(self) -> str:
        """Its authority's certificate."""
        return self.host.read(f"{_TLS_FOLDER}/ca.crt")

    def trust(self, authority: str | None) -> None:
        """The host knows the registry by this certificate from now on, or by none."""
        folder = f"/etc/containers/certs.d/{self.address}"
        if authority is None:
            self.host.run(["rm", "-rf", folder])
        else:
            self.host.write(f"{folder}/ca.crt", authority)


def auth_file(user: str, password: str) -> str:
    """The text of a containers-auth.json(5) for the registry that wants a login."""
    word = base64.b64encode(f"{user}:{password}".encode()).decode()
    return json.dumps({"auths": {SECURE_ADDRESS: {"auth": word}}})


def definition(image: str, *lines: str, policy: str = "missing") -> str:
    """A definition that fetches without TLS and gives up at once."""
    head = "\n".join([f'image = "{image}"', *lines])
    return f'{head}\n\n[pull]\ntls_verify = false\nretry = 0\npolicy = "{policy}"\n\n{QUICK}'


def forget(host: Host) -> None:
    """No image, no volume and nothing half-made is left."""
    host.run(["cleat", "reload-agent"], check=False)
    host.run(f"rm -rf {STORE}/* /var/lib/cleat/volumes/* {LAYOUTS}")
