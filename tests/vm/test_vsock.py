# SPDX-License-Identifier: Apache-2.0
"""Sockets of the address family that guests and their hosts share (vsock(7)): it needs a kernel with the loopback."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.host import samples

if TYPE_CHECKING:
    from tests.host.hosts import Host

CONNECT = """
import socket
with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as client:
    client.settimeout(30)
    client.connect((1, 9000))  # VMADDR_CID_LOCAL
"""


def test_a_connection_starts_a_container(clean: Host) -> None:
    clean.run(["modprobe", "vsock_loopback"])
    tables = '[[socket]]\nlisten_stream = "vsock::9000"\non_demand = true\n'
    samples.add(clean, web=samples.definition(tables=tables))
    clean.reload()
    assert clean.status("web")["state"] == "inactive"
    clean.run(["python3", "-c", CONNECT])
    clean.wait_event("web", "ready")
