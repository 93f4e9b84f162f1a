# SPDX-License-Identifier: Apache-2.0
"""LISTEN_FDS: what is bound, what the payload gets, and that nobody who connects is ever refused."""

from __future__ import annotations

import pytest

from tests.host.hosts import PACKAGE_IN_HOST, Host
from tests.host.service import Service, kill_agent, stored

HTTP = '[[socket]]\nname = "http"\nlisten_stream = "127.0.0.1:8071"\n'
EVERY_KIND = """
[[socket]]
name = "four"
listen_stream = "127.0.0.1:8071"
[[socket]]
name = "six"
listen_stream = "[::1]:8071"
bind_ipv6_only = "ipv6-only"
[[socket]]
name = "datagrams"
listen_datagram = "127.0.0.1:8072"
[[socket]]
name = "node"
listen_stream = "/run/payloads/node.sock"
socket_mode = "0640"
socket_user = "www-data"
socket_group = "daemon"
[[socket]]
name = "packets"
listen_sequential_packet = "/run/payloads/packets.sock"
[[socket]]
name = "abstract"
listen_stream = "@cleat-test"
[[socket]]
name = "fifo"
listen_fifo = "/run/payloads/fifo"
socket_mode = "0600"
"""
NAMES = ["four", "six", "datagrams", "node", "packets", "abstract", "fifo"]


def ask(host: Host, address: str, text: str = "hello", *, timeout: float = 10.0) -> str:
    """What a server answers, by socat's word for the address."""
    said = host.run(["socat", "-t5", "-", address], stdin=f"{text}\n", timeout=timeout).stdout
    return said.strip()


@pytest.mark.parametrize("runtime", ["crun", "runc"])
@pytest.mark.parametrize("terminal", ["", "stdin = true"])
def test_exactly_these_files_are_open(clean: Host, runtime: str, terminal: str) -> None:
    toml = EVERY_KIND + f'[runtime]\nname = "{runtime}"\n'
    service = Service(clean, "open").define(toml, keys=terminal)
    clean.reload()
    service.started()
    (found,) = service.tell("fds")
    assert found["pid"] == 1
    assert found["environment"] == {
        "LISTEN_FDS": str(len(NAMES)),
        "LISTEN_FDNAMES": ":".join(NAMES),
        "LISTEN_PID": "1",
    }
    # payload.py's own epoll comes right behind what it was given.
    files = {int(fd): what for fd, what in found["fds"].items()}
    own = [fd for fd, what in files.items() if "eventpoll" in what]
    assert sorted(files.keys() - set(own)) == list(range(3 + len(NAMES)))
    assert all(what.startswith("socket:") for fd, what in files.items() if 3 <= fd < 9)
    assert files[9] == "/run/payloads/fifo"
    assert found["blocking"] == [True] * len(NAMES)


def test_every_kind_of_address(clean: Host) -> None:
    service = Service(clean, "kinds").define(EVERY_KIND)
    clean.reload()
    service.started()
    for address in ("TCP4:127.0.0.1:8071", "TCP6:[::1]:8071", "UNIX-CONNECT:/run/payloads/node.sock"):
        assert ask(clean, address) == "hello kinds"
    assert ask(clean, "ABSTRACT-CONNECT:cleat-test") == "hello kinds"
    assert ask(clean, "UNIX-CONNECT:/run/payloads/packets.sock,type=5") == "hello kinds"
    clean.run(["socat", "-u", "-", "UDP4:127.0.0.1:8072"], stdin="a datagram")
    clean.run("echo bytes >/run/payloads/fifo")
    service.tell("fds", "fds")
    assert sorted(service.datagrams()) == ["a datagram", "bytes"]
    stat = clean.run("stat -c '%a %U %G' /run/payloads/node.sock /run/payloads/fifo").stdout.splitlines()
    assert stat == ["640 www-data daemon", "600 root root"]


def test_one_socket_over_all_that_happens(clean: Host) -> None:
    """The same inode is passed after each of them, and is blocking again."""
    service = Service(clean, "kept").define(EVERY_KIND)
    clean.reload()
    service.started()

    def sockets() -> list[str]:
        (found,) = service.tell("fds")
        assert found["blocking"] == [True] * len(NAMES)
        service.tell("nonblocking")
        # A fifo is shown by the mount that it was opened on, which goes with the mount namespace of an agent.
        return [found["fds"][str(3 + i)].removeprefix("/run") for i in range(len(NAMES))]

    def again(event: str = "started") -> str:
        mark = clean.cursor()
        clean.cleat("kill", "-s", "KILL", "kept")
        service.event(event, since=mark)
        service.started(since=mark)
        return mark

    before = sockets()
    clean.cleat("restart", "kept")
    mark = clean.mark
    service.started(since=mark)
    assert sockets() == before
    again()
    assert sockets() == before
    kill_agent(clean)
    again()
    assert sockets() == before
    clean.run(["systemctl", "restart", "cleat"])
    again()
    assert sockets() == before
    clean.run("systemctl stop cleat; systemctl start cleat")
    again()
    assert sockets() == before
    clean.run(["dpkg", "--install", PACKAGE_IN_HOST], timeout=120)
    again()
    assert sockets() == before


@pytest.mark.parametrize("change", ["command", "order", "option"])
def test_kept_when_the_definition_changes(clean: Host, change: str) -> None:
    other = '[[socket]]\nname = "other"\nlisten_stream = "127.0.0.1:8073"\n'
    service = Service(clean, "kept").define(HTTP + other)
    clean.reload()
    service.started()
    first = service.tell("fds")[0]["fds"]
    mark = clean.cursor()
    match change:
        case "command":
            service.define(HTTP + other, keys='hostname = "changed"')
        case "order":
            service.define(other + HTTP)
        case _:
            service.define(HTTP + "backlog = 7\n" + other)
    clean.reload()
    service.started(since=mark)
    second = service.tell("fds")[0]["fds"]
    order = ("4", "3") if change == "order" else ("3", "4")
    assert (second[order[0]], second[order[1]]) == (first["3"], first["4"])
    assert len([name for name in stored(clean) if "/socket/" in name]) == 2


def test_given_up_with_the_definition(clean: Host) -> None:
    """Nobody listens at an address that no definition names, not even systemd's store."""
    service = Service(clean, "moved").define(HTTP)
    clean.reload()
    service.started()
    mark = clean.cursor()
    service.define(HTTP.replace("8071", "8074"))
    clean.reload()
    service.started(since=mark)
    assert ask(clean, "TCP4:127.0.0.1:8074") == "hello moved"
    assert clean.run(["socat", "-u", "-", "TCP4:127.0.0.1:8071"], check=False).returncode == 1
    mark = clean.cursor()
    service.define(HTTP)
    clean.reload()
    service.started(since=mark)
    assert ask(clean, "TCP4:127.0.0.1:8071") == "hello moved"
    clean.remove_definition("moved")
    clean.reload()
    assert clean.run("ss -Hltn 'sport = 8071 or sport = 8074'").stdout == ""


def test_one_that_is_taken_names_its_holder(clean: Host) -> None:
    with clean.start(["socat", "TCP4-LISTEN:8071,bind=127.0.0.1", "STDOUT"]) as holder:
        clean.run("until ss -Hltn 'sport = 8071' | grep -q .; do :; done")
        pid = clean.run("ss -Hltnp 'sport = 8071' | grep -o 'pid=[0-9]*' | cut -d= -f2").stdout.strip()
        taken = Service(clean, "taken").define(HTTP + '[service]\nrestart = "no"\n')
        fine = Service(clean, "fine").define()
        clean.cleat("reload-agent", check=False)
        fine.started()
        entry = clean.wait_event("taken", "socket-failed")
        assert f"held by socat (pid {pid})" in entry["MESSAGE"]
        assert "socket[0].listen_stream" in entry["MESSAGE"]
        status = taken.status
        assert status["state"] == "failed"
        assert f"pid {pid}" in status["error"]
        holder.terminate()
        holder.wait(5)
        clean.run("until ! ss -Hltn 'sport = 8071' | grep -q .; do :; done")
    clean.cleat("start", "taken")
    taken.started()
    assert ask(clean, "TCP4:127.0.0.1:8071") == "hello taken"


UNIT = """
[Socket]
ListenStream=127.0.0.1:8075
FileDescriptorName=web
Service=cleat.service
"""


def test_socket_units_are_taken_over(clean: Host) -> None:
    clean.write("/run/systemd/system/web.socket", UNIT)
    clean.run("systemctl daemon-reload; systemctl stop cleat; systemctl start web.socket cleat")
    try:
        service = Service(clean, "web").define('[[socket]]\nname = "web"\nlisten_stream = "127.0.0.1:8075"\n')
        clean.reload()
        service.started()
        (found,) = service.tell("fds")
        assert found["environment"]["LISTEN_FDNAMES"] == "web"
        assert ask(clean, "TCP4:127.0.0.1:8075") == "hello web"
        kill_agent(clean)
        clean.cleat("restart", "web")
        assert ask(clean, "TCP4:127.0.0.1:8075") == "hello web"
        assert [name for name in stored(clean) if "/socket/" in name] == []
        # Its definition may go and come back; the socket is the unit's.
        clean.remove_definition("web")
        clean.reload()
        service.define('[[socket]]\nname = "web"\nlisten_stream = "127.0.0.1:8075"\n')
        mark = clean.cursor()
        clean.reload()
        service.started(since=mark)
        assert service.tell("fds")[0]["fds"]["3"] == found["fds"]["3"]
    finally:
        clean.remove_definition("web")
        clean.run("cleat reload-agent; systemctl stop cleat web.socket; rm /run/systemd/system/web.socket", check=False)
        clean.run("systemctl daemon-reload; systemctl start cleat")


def test_clients_wait_while_nobody_serves(clean: Host) -> None:
    service = Service(clean, "late").define(HTTP)
    clean.reload()
    service.started()
    clean.cleat("stop", "late")
    with clean.start(["socat", "-t20", "-", "TCP4:127.0.0.1:8071"]) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"patience\n")
        client.stdin.close()
        clean.run("until ss -Htn state connected 'sport = 8071' | grep -q .; do :; done")
        clean.run(["systemctl", "restart", "cleat"])
        clean.cleat("start", "late")
        assert client.stdout.read() == b"patience late\n"
