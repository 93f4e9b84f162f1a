# SPDX-License-Identifier: Apache-2.0
"""Listening sockets out of [[socket]] tables: real ones on loopback and in a temporary folder."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from agent.definition.model import Socket
from agent.errors import DefinitionRejected
from agent.systemd import sockdiag, socket_options
from agent.systemd.socket_use import SocketUse
from agent.systemd.sockets import bind, matches, reconfigure, remove_node, wanted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

is_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def opened() -> Iterator[list[int]]:
    """fds to be closed after the test."""
    fds: list[int] = []
    yield fds
    for fd in fds:
        os.close(fd)


@pytest.fixture
def port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def as_socket(fd: int) -> socket.socket:
    return socket.socket(fileno=os.dup(fd))


def test_tcp(port: int, opened: list[int]) -> None:
    table = Socket(listen_stream=f"127.0.0.1:{port}", backlog=5)
    fd = bind(table)
    opened.append(fd)
    assert not os.get_inheritable(fd)
    assert os.get_blocking(fd)
    with as_socket(fd) as server, socket.create_connection(("127.0.0.1", port)):
        server.accept()[0].close()
    assert matches(fd, table)


def test_a_bare_port_listens_on_both_families(port: int, opened: list[int]) -> None:
    table = Socket(listen_stream=str(port))
    opened.append(bind(table))
    socket.create_connection(("127.0.0.1", port)).close()
    socket.create_connection(("::1", port)).close()
    assert matches(opened[0], table)
    assert not matches(opened[0], Socket(listen_stream=f"127.0.0.1:{port}"))
    assert not matches(opened[0], Socket(listen_datagram=str(port)))


def test_ipv6_only(port: int, opened: list[int]) -> None:
    table = Socket(listen_stream=str(port), bind_ipv6_only=_value("bind_ipv6_only", "ipv6-only"))
    opened.append(bind(table))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    assert matches(opened[0], table)
    assert not matches(opened[0], Socket(listen_stream=str(port), bind_ipv6_only=_value("bind_ipv6_only", "both")))


def _value(field: str, text: str) -> Any:
    """A value in the type that the model has for the field."""
    return type(getattr(Socket(), field))(text)


def test_an_address_in_use_names_who_holds_it(port: int, opened: list[int]) -> None:
    code = f"import socket, sys; s = socket.create_server(('127.0.0.1', {port})); print(flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin
    assert child.stdout
    child.stdout.readline()
    before = open_fds()
    with pytest.raises(DefinitionRejected) as caught:
        bind(Socket(listen_stream=str(port)), index=1, container="web", file="/etc/web.toml")
    assert open_fds() == before
    assert caught.value.key == "socket[1].listen_stream"
    assert caught.value.file == "/etc/web.toml"
    assert f"(pid {child.pid})" in caught.value.why
    child.stdin.close()
    child.wait()
    child.stdout.close()
    opened.append(bind(Socket(listen_stream=str(port))))


def test_datagram_addresses_cannot_be_taken_twice(port: int, opened: list[int]) -> None:
    table = Socket(listen_datagram=f"127.0.0.1:{port}")
    opened.append(bind(table))
    assert matches(opened[0], table)
    with pytest.raises(DefinitionRejected, match="in use: held by this agent"):
        bind(table)


def test_reuse_port(port: int, opened: list[int]) -> None:
    table = Socket(listen_stream=f"127.0.0.1:{port}", reuse_port=True)
    opened += [bind(table), bind(table)]


def test_options_of_tcp(port: int, opened: list[int]) -> None:
    table = Socket(
        listen_stream=f"127.0.0.1:{port}",
        keep_alive=True,
        no_delay=True,
        defer_accept_sec=1.5,
        receive_buffer=65536,
        send_buffer=32768,
        ip_tos=16,
        ip_ttl=7,
        priority=3,
        free_bind=True,
    )
    opened.append(bind(table))

    def option(level: int, name: int) -> int:
        with as_socket(opened[0]) as sock:
            return sock.getsockopt(level, name)

    assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert option(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert option(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) >= 2
    assert option(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * 65536
    assert option(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 32768
    assert option(socket.IPPROTO_IP, socket.IP_TOS) == 16
    assert option(socket.IPPROTO_IP, socket.IP_TTL) == 7
    assert option(socket.SOL_SOCKET, socket.SO_PRIORITY) == 3
    reconfigure(opened[0], Socket(listen_stream=f"127.0.0.1:{port}"))
    assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
    assert option(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
    assert option(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) == 0


@is_root
def test_accept_from(port: int, opened: list[int]) -> None:
    table = Socket(listen_stream=str(port), accept_from="127.0.0.2 ::1")
    opened.append(bind(table))
    socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0)).close()
    socket.create_connection(("::1", port)).close()
    with pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", port), timeout=0.05)
    reconfigure(opened[0], Socket(listen_stream=str(port)))
    socket.create_connection(("127.0.0.1", port)).close()


@pytest.mark.parametrize(
    ("table", "key", "text"),
    [
        ({}, "socket[0]", "exactly one listen_ key"),
        ({"listen_stream": "80", "listen_fifo": "/x"}, "socket[0]", "exactly one"),
        ({"listen_stream": "1.2.3.4:99999"}, "socket[0].listen_stream", "not a port"),
        ({"listen_sequential_packet": "80"}, "socket[0].listen_sequential_packet", "sequential"),
        ({"listen_stream": "[fe80::1%nope0]:80"}, "socket[0].listen_stream", "no network interface nope0"),
        ({"listen_stream": "192.0.2.77:8080"}, "socket[0].listen_stream", "free_bind"),
        ({"listen_stream": "127.0.0.1:0"}, "socket[0].listen_stream", "port"),
        ({"listen_stream": "@x", "accept_from": "any"}, "socket[0].accept_from", "IP sockets"),
        ({"listen_stream": "80", "accept_from": "nowhere"}, "socket[0].accept_from", "not a network"),
        ({"listen_stream": "@cleat-x", "no_delay": True}, "socket[0].no_delay", "not supported"),
        ({"listen_stream": "/proc/none/x"}, "socket[0].directory_mode", "No such file"),
        ({"listen_stream": "/etc/passwd"}, "socket[0].listen_stream", "is not a socket"),
        ({"listen_fifo": "/etc/passwd"}, "socket[0].listen_fifo", "cannot make the fifo /etc/passwd"),
        ({"listen_fifo": "relative"}, "socket[0].listen_fifo", "absolute"),
    ],
)
def test_errors_name_the_key(table: dict[str, Any], key: str, text: str) -> None:
    before = open_fds()
    with pytest.raises(DefinitionRejected) as caught:
        bind(Socket(**table), container="web")
    assert caught.value.key == key
    assert caught.value.container == "web"
    assert text in str(caught.value)
    assert open_fds() == before


@pytest.mark.parametrize("kind", ["listen_stream", "listen_sequential_packet", "listen_datagram"])
def test_unix_socket(tmp_path: Path, opened: list[int], kind: str) -> None:
    path = tmp_path / "a/b/web.sock"
    options: dict[str, Any] = {"socket_mode": 0o622, "directory_mode": 0o711, kind: str(path)}
    table = Socket(**options)
    fd = bind(table)
    opened.append(fd)
    assert stat.S_IMODE(path.stat().st_mode) == 0o622
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o711
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o711
    assert matches(fd, table)
    with as_socket(fd) as sock:
        assert sock.getsockname() == str(path)
    assert remove_node(fd, table)
    assert not path.exists()
    assert not matches(fd, table)
    assert not remove_node(fd, table)


def test_the_umask_does_not_matter(tmp_path: Path, opened: list[int]) -> None:
    before = os.umask(0o777)
    try:
        opened.append(bind(Socket(listen_stream=str(tmp_path / "a/s"), socket_mode=0o666)))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a/s").stat().st_mode) == 0o666
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o755


@is_root
def test_owner(tmp_path: Path, opened: list[int]) -> None:
    opened.append(bind(Socket(listen_stream=str(tmp_path / "s"), socket_user="daemon")))
    found = (tmp_path / "s").stat()
    assert (found.st_uid, found.st_gid) == (1, 1)
    opened.append(bind(Socket(listen_fifo=str(tmp_path / "f"), socket_user="4242", socket_group="daemon")))
    found = (tmp_path / "f").stat()
    assert (found.st_uid, found.st_gid) == (4242, 1)


@pytest.mark.parametrize("key", ["socket_user", "socket_group"])
def test_unknown_owners_leave_no_node(tmp_path: Path, key: str) -> None:
    options: dict[str, Any] = {key: "no-such-name", "listen_stream": str(tmp_path / "s")}
    with pytest.raises(DefinitionRejected) as caught:
        bind(Socket(**options))
    assert caught.value.key == f"socket[0].{key}"
    assert list(tmp_path.iterdir()) == []


def test_a_failed_option_leaves_no_node(tmp_path: Path) -> None:
    with pytest.raises(DefinitionRejected, match="no_delay"):
        bind(Socket(listen_stream=str(tmp_path / "s"), no_delay=True))
    assert list(tmp_path.iterdir()) == []


def test_a_stale_socket_is_replaced(tmp_path: Path, opened: list[int]) -> None:
    table = Socket(listen_stream=str(tmp_path / "s"))
    os.close(bind(table))
    opened.append(bind(table))
    assert matches(opened[0], table)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_socket_in_use_is_not_touched(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(path))
        with pytest.raises(DefinitionRejected, match="listens there already: this agent"):
            bind(Socket(listen_stream=str(path)))
        assert path.exists()


@is_root
def test_a_stale_socket_of_somebody_else_is_not_touched(tmp_path: Path, opened: list[int]) -> None:
    table = Socket(listen_stream=str(tmp_path / "s"))
    os.close(bind(table))
    os.chown(tmp_path / "s", 4242, 4242)
    with pytest.raises(DefinitionRejected, match="an old socket of user 4242"):
        bind(table)
    opened.append(bind(Socket(listen_stream=str(tmp_path / "s"), socket_user="4242")))


def test_a_symlink_in_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "s").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DefinitionRejected, match="is not a socket"):
        bind(Socket(listen_stream=str(tmp_path / "s")))
    with pytest.raises(DefinitionRejected):
        bind(Socket(listen_fifo=str(tmp_path / "s")))
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_kept_socket_whose_node_was_replaced_does_not_match(tmp_path: Path, opened: list[int]) -> None:
    table = Socket(listen_stream=str(tmp_path / "s"))
    opened.append(bind(table))
    (tmp_path / "s").unlink()
    opened.append(bind(table))
    assert not matches(opened[0], table)
    assert matches(opened[1], table)


def test_abstract_socket(opened: list[int]) -> None:
    table = Socket(listen_stream=f"@cleat-test-{os.getpid()}", pass_credentials=True)
    opened.append(bind(table))
    assert matches(opened[0], table)
    assert not matches(opened[0], Socket(listen_stream="@other"))
    with as_socket(opened[0]) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED) == 1
    with pytest.raises(DefinitionRejected, match="held by this agent"):
        bind(table)


def test_fifo(tmp_path: Path, opened: list[int]) -> None:
    path = tmp_path / "x/f"
    table = Socket(listen_fifo=str(path), socket_mode=0o620, pipe_size=8192)
    opened.append(bind(table))
    assert stat.S_IMODE(path.stat().st_mode) == 0o620
    assert os.get_blocking(opened[0])
    assert matches(opened[0], table)
    opened.append(bind(table))
    path.unlink()
    assert not matches(opened[0], table)


def test_nothing_else_matches(tmp_path: Path, port: int) -> None:
    read, write = os.pipe()
    for table in (Socket(listen_stream=str(port)), Socket(listen_fifo=str(tmp_path / "f"))):
        assert not matches(read, table)
    os.close(read)
    os.close(write)
    assert not matches(9999, Socket(listen_stream=str(port)))
    with socket.socket() as bound_only:
        bound_only.bind(("127.0.0.1", port))
        assert not matches(bound_only.fileno(), Socket(listen_stream=f"127.0.0.1:{port}"))


def test_what_is_asked_of_the_kernel_for_ipv6() -> None:
    table = Socket(listen_stream="80", free_bind=True, transparent=True, mark=7, bind_to_device="lo")
    early = {o.key for o in socket_options.before_bind(table, socket.AF_INET6, socket.SOCK_STREAM)}
    assert early == {"", "free_bind", "transparent", "bind_to_device"}
    late = {o.key for o in socket_options.after_bind(table, socket.AF_INET6, socket.SOCK_STREAM)}
    assert late == {"keep_alive", "no_delay", "defer_accept_sec", "mark"}


def test_reading_a_table_touches_nothing(tmp_path: Path) -> None:
    assert wanted(Socket(listen_stream=str(tmp_path / "s"))).path == str(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def count(fd: int) -> int:
    return asyncio.run(sockdiag.count_connections(fd))


def test_connections_of_tcp(port: int, opened: list[int]) -> None:
    opened.append(bind(Socket(listen_stream=str(port))))
    assert count(opened[0]) == 0
    with (
        as_socket(opened[0]) as server,
        socket.create_connection(("127.0.0.1", port)),
        socket.create_connection(("::1", port)) as second,
    ):
        assert count(opened[0]) == 2
        taken = [server.accept()[0], server.accept()[0]]
        assert count(opened[0]) == 2
        # Half-closed by the peer: an answer may still come.
        second.shutdown(socket.SHUT_WR)
        assert count(opened[0]) == 2
        for sock in taken:
            sock.close()
    assert count(opened[0]) == 0


def test_connections_of_one_address(port: int, opened: list[int]) -> None:
    opened += [bind(Socket(listen_stream=f"127.0.0.{n}:{port}")) for n in (1, 2)]
    with socket.create_connection(("127.0.0.2", port)):
        assert [count(fd) for fd in opened] == [0, 1]


@pytest.mark.parametrize("abstract", [True, False])
def test_connections_of_a_unix_socket(tmp_path: Path, opened: list[int], *, abstract: bool) -> None:
    path = f"@cleat-test-{os.getpid()}" if abstract else str(tmp_path / "s")
    opened.append(bind(Socket(listen_stream=path)))
    clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for client in clients:
        client.connect(path.replace("@", "\0"))
    assert count(opened[0]) == 3
    with as_socket(opened[0]) as server:
        taken = [server.accept()[0] for _ in range(2)]
    assert count(opened[0]) == 3
    for sock in (*taken, *clients):
        sock.close()
    assert count(opened[0]) <= 1


def test_datagrams_have_no_connections(port: int, opened: list[int]) -> None:
    opened.append(bind(Socket(listen_datagram=f"127.0.0.1:{port}")))
    assert count(opened[0]) == 0


def used(use: SocketUse) -> bool:
    return asyncio.run(use.is_used())


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_datagram_that_somebody_else_read_is_use(port: int, opened: list[int], host: str) -> None:
    opened.append(bind(Socket(listen_datagram=f"{host}:{port}")))
    use = SocketUse(opened[0])
    assert not used(use)
    with socket.socket(fileno=os.dup(opened[0])) as reader, socket.socket(reader.family, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"1", reader.getsockname())
        assert [used(use), used(use)] == [True, True]  # nobody has read it yet
        reader.recv(10)
        assert [used(use), used(use)] == [True, False]
        for _ in range(2):
            sender.sendto(b"2", reader.getsockname())
            reader.recv(10)
            assert [used(use), used(use)] == [True, False]


def test_where_the_reader_takes_the_time_stamps_it_counts_as_used(port: int, opened: list[int]) -> None:
    opened.append(bind(Socket(listen_datagram=f"127.0.0.1:{port}")))
    use = SocketUse(opened[0])
    assert not used(use)
    with socket.socket(fileno=os.dup(opened[0])) as reader:
        reader.setsockopt(socket.SOL_SOCKET, 29, 1)  # SO_TIMESTAMP
        assert [used(use), used(use)] == [True, True]


def test_a_connection_is_use(port: int, opened: list[int]) -> None:
    opened.append(bind(Socket(listen_stream=f"127.0.0.1:{port}")))
    use = SocketUse(opened[0])
    assert not used(use)
    with socket.create_connection(("127.0.0.1", port)):
        assert used(use)
