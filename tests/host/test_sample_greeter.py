# SPDX-License-Identifier: Apache-2.0
"""The sample with sockets and readiness, on the folder that all samples run in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.host.nspawn import CHECKOUT

if TYPE_CHECKING:
    from tests.host.hosts import Host


def test_greeter(clean: Host) -> None:
    sample = (CHECKOUT / "config/samples/greeter.toml").read_text(encoding="utf-8")
    busybox = clean.rootfs("busybox")
    clean.run(f"mkdir -p /srv/cleat-samples && ln -sfn {busybox} /srv/cleat-samples/busybox")
    clean.definition("greeter", sample)
    clean.reload()
    assert clean.status("greeter")["state"] == "inactive"
    for _ in range(2):
        assert clean.run(["socat", "-t5", "-", "TCP4:127.0.0.1:8086"]).stdout == "Welcome at the front-door\n"
    assert clean.run(["socat", "-t5", "-", "UNIX-CONNECT:/run/greeter.sock"]).stdout == "Welcome at the back-door\n"
    clean.wait_event("greeter", "ready")
    clean.cleat("stop", "greeter")
    clean.wait_event("greeter", "stopped")
    assert clean.status("greeter")["exit_code"] == 0
