# SPDX-License-Identifier: Apache-2.0
"""cleat inspect: what is known of a container, and the spec that its runtime gets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.host.hosts import Host

SERVE = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"


def spec(host: Host, name: str) -> Any:
    return json.loads(host.cleat("inspect", "--spec", name).stdout)


def without_id(found: Any, container_id: str) -> str:
    return json.dumps(found, sort_keys=True).replace(container_id, "ID")


def test_the_spec_is_that_of_the_run_and_before_it_the_same(clean: Host) -> None:
    clean.rootfs("bb")
    clean.write("/etc/cleat/secret", "x", mode=0o600)
    clean.definition(
        "web",
        f"""
        rootfs = "/srv/bb"
        autostart = false
        command = ["/bin/sh", "-c", "{SERVE}"]
        [service]
        notify = "container"
        timeout_start_sec = "infinity"
        [[socket]]
        name = "http"
        listen_stream = "127.0.0.1:8180"
        [[mount]]
        type = "volume"
        source = "made-at-start"
        target = "/data"
        [[credential]]
        name = "password"
        load = "/etc/cleat/secret"
        """,
    )
    clean.reload()
    before = spec(clean, "web")
    assert not clean.exists("/var/lib/cleat/volumes/made-at-start")
    assert clean.run(["ls", "/run/cleat/b"]).stdout == ""
    assert before["process"]["args"] == ["/bin/sh", "-c", SERVE]
    assert "LISTEN_FDNAMES=http" in before["process"]["env"]

    with clean.start(["cleat", "start", "web"]):
        clean.wait_event("web", "started")
        known = json.loads(clean.cleat("inspect", "web").stdout)
        now = spec(clean, "web")
        assert json.loads(clean.read(f"{known['bundle']}/config.json")) == now
        planned = next(m["source"] for m in before["mounts"] if m["destination"] == "/etc/hosts").split("/")[-2]
        assert without_id(before, planned) == without_id(now, known["id"])
        assert "process" not in known
    clean.run(["rm", "/etc/cleat/secret"])


def test_what_keeps_it_from_starting_is_said(clean: Host) -> None:
    clean.definition("web", 'image = "registry.invalid/nothing:1"\nautostart = false\n')
    clean.reload()
    refused = clean.cleat("inspect", "--spec", "web", check=False)
    assert refused.returncode == 125
    assert "cleat pull web" in refused.stderr
