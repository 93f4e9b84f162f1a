# SPDX-License-Identifier: Apache-2.0
"""Clients that never stop, while the container and the agent are restarted and killed: nobody is refused, nothing lost.

The numbers of restarts are small by default; CLEAT_LOAD=full asks for 50 of the container and 20 of the agent.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from tests.host.service import Service, kill_agent

if TYPE_CHECKING:
    import pytest

    from tests.host.hosts import Host

CONTAINER, AGENT = (50, 20) if os.environ.get("CLEAT_LOAD") == "full" else (12, 4)
TOML = """
[service]
restart = "always"
restart_sec = "10ms"
restart_max_delay_sec = "10ms"
[[socket]]
name = "http"
listen_stream = "127.0.0.1:8061"
[[socket]]
name = "datagrams"
listen_datagram = "127.0.0.1:8062"
receive_buffer = "4M"
"""
# Ends on SIGTERM and prints its counts.
CLIENT = """
import json, signal, socket, sys, time
ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
count = dict(answered=0, refused=0, cut=0, timeouts=0, datagrams=0, datagrams_refused=0, longest_ms=0)
datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagram.connect(("127.0.0.1", 8062))
print("begun", flush=True)
while not ended:
    start = time.monotonic()
    try:
        with socket.create_connection(("127.0.0.1", 8061), 30) as client:
            client.sendall(b"x\\n")
            count["answered" if client.recv(100) else "cut"] += 1
    except ConnectionRefusedError:
        count["refused"] += 1
    except TimeoutError:
        count["timeouts"] += 1
    except OSError:
        count["cut"] += 1
    count["longest_ms"] = max(count["longest_ms"], round(1000 * (time.monotonic() - start)))
    try:
        datagram.send(b"%d" % (count["datagrams"] + 1))
        count["datagrams"] += 1
    except OSError:
        count["datagrams_refused"] += 1
print(json.dumps(count), flush=True)
"""


def test_nobody_is_refused(clean: Host, capsys: pytest.CaptureFixture[str]) -> None:
    service = Service(clean, "busy").define(TOML)
    clean.reload()
    service.started()
    pid_file = "/run/payloads/client.pid"
    with clean.start(["sh", "-c", f"echo $$ >{pid_file}; exec python3 -c '{CLIENT}'"], timeout=500) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"begun\n"
        for i in range(CONTAINER):
            if i % 2:
                clean.cleat("restart", "busy")
            else:
                mark = clean.cursor()
                clean.cleat("kill", "-s", "TERM", "busy")
                service.event("started", since=mark)
            if i * AGENT // CONTAINER != (i + 1) * AGENT // CONTAINER:
                if i * AGENT // CONTAINER % 2:
                    clean.run(["systemctl", "restart", "cleat"])
                else:
                    kill_agent(clean)
        clean.run(f"kill -TERM $(cat {pid_file})")
        count = json.loads(client.stdout.readline())
    # The last ones are read before the commands: both wait in one epoll.
    service.tell(*["fds"] * 50)
    got = service.datagrams()
    with capsys.disabled():
        lost = count["datagrams"] - len(set(got))
        print(f"\n{CONTAINER} restarts of the container, {AGENT} of the agent: {count}, datagrams lost {lost}")
    assert count["refused"] == count["cut"] == count["timeouts"] == count["datagrams_refused"] == 0
    assert count["answered"] > 10 * CONTAINER
    assert lost == 0
