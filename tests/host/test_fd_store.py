# SPDX-License-Identifier: Apache-2.0
"""FDSTORE=1 of containers: kept, given back at the next start, over restarts of the container and of the agent."""

from __future__ import annotations

import pytest

from tests.host.hosts import Host
from tests.host.service import Service, kill_agent, stored

TOML = '[service]\nnotify = "container"\nfile_descriptor_store_max = 3\n'
SOCKET = '[[socket]]\nname = "http"\nlisten_stream = "127.0.0.1:8070"\n'


@pytest.fixture
def keeper(clean: Host) -> Service:
    service = Service(clean, "keeper").define(TOML + SOCKET, at_start="READY=1")
    clean.reload()
    return service


def kept(host: Host) -> list[str]:
    return [name for name in stored(host) if "/stored/" in name]


def test_given_back_behind_the_sockets(clean: Host, keeper: Service) -> None:
    assert keeper.tell("store one hello", "store two world") == ["handled", "handled"]
    for again in ("restart", "kill"):
        mark = clean.cursor()
        if again == "restart":
            clean.cleat("restart", "keeper")
        else:
            clean.cleat("kill", "-s", "KILL", "keeper")
            keeper.event("ready", since=mark)
        found, files = keeper.tell("fds", "stored")
        assert found["environment"]["LISTEN_FDS"] == "3"
        assert found["environment"]["LISTEN_FDNAMES"] == "http:one:two"
        assert files == [["one", "hello"], ["two", "world"]]


def test_no_more_than_asked_for(clean: Host, keeper: Service) -> None:
    keeper.tell("store a 1", "store b 2", "store c 3", "store d 4")
    assert "file_descriptor_store_max is 3" in keeper.event("notify-refused")["MESSAGE"]
    clean.cleat("restart", "keeper")
    assert keeper.tell("stored") == [[["a", "1"], ["b", "2"], ["c", "3"]]]


def test_removed_by_name(clean: Host, keeper: Service) -> None:
    keeper.tell("store a 1", "store b 2", "store a 3")
    keeper.notify("FDSTOREREMOVE=1\\nFDNAME=a")
    assert len(kept(clean)) == 1
    clean.cleat("restart", "keeper")
    assert keeper.tell("stored") == [[["b", "2"]]]


def test_dropped_when_the_other_side_is_gone(clean: Host, keeper: Service) -> None:
    keeper.tell("pipe line", "store file text")
    assert len(kept(clean)) == 2
    keeper.tell("hangup", "barrier", "barrier")
    assert len(kept(clean)) == 1
    clean.cleat("restart", "keeper")
    assert keeper.tell("stored") == [[["file", "text"]]]


def test_survives_agents_while_the_container_is_down_too(clean: Host, keeper: Service) -> None:
    keeper.tell("store one hello", "store two world")
    kill_agent(clean)
    clean.cleat("stop", "keeper")
    kill_agent(clean)
    clean.run(["systemctl", "restart", "cleat"])
    clean.cleat("start", "keeper")
    assert keeper.tell("stored") == [[["one", "hello"], ["two", "world"]]]


def test_gone_with_the_definition(clean: Host, keeper: Service) -> None:
    keeper.tell("store one hello")
    clean.remove_definition("keeper")
    clean.reload()
    assert stored(clean) == []
