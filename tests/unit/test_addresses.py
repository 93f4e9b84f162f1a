# SPDX-License-Identifier: Apache-2.0
"""Addresses to listen on, and published ports."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.definition.addresses import (
    VSOCK_CID_ANY,
    Family,
    ListenAddress,
    PortMapping,
    Protocol,
    parse_fifo,
    parse_listen_address,
    parse_publish,
)
from agent.definition.values import InvalidValue


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("80", ListenAddress(family=Family.IPV6, host="::", port=80, wildcard=True)),
        ("0.0.0.0:8080", ListenAddress(family=Family.IPV4, host="0.0.0.0", port=8080)),
        ("[::1]:80", ListenAddress(family=Family.IPV6, host="::1", port=80)),
        ("[fe80::1%eth0]:80", ListenAddress(family=Family.IPV6, host="fe80::1", scope="eth0", port=80)),
        ("[0:0::1]:80", ListenAddress(family=Family.IPV6, host="::1", port=80)),
        ("/run/a.sock", ListenAddress(family=Family.UNIX, path="/run/a.sock")),
        ("@a/b", ListenAddress(family=Family.UNIX, path="@a/b")),
        ("vsock:2:1024", ListenAddress(family=Family.VSOCK, cid=2, port=1024)),
        ("vsock::1024", ListenAddress(family=Family.VSOCK, cid=VSOCK_CID_ANY, port=1024)),
    ],
)
def test_listen_address(text: str, address: ListenAddress) -> None:
    assert parse_listen_address(text) == address
    assert parse_listen_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "", "0", "65536", "localhost:80", "1.2.3:80", "1.2.3.4", "::1:80", "[::1]", "[::g]:80", "/", "@", "/run/",
        "run/a", "/run/../a", "/" + "a" * 107, "vsock:1", "vsock:4294967296:1", "vsock:1:99999999999", "٣",
        "1.2.3.4:80 ", "99999999999",
    ],
)  # fmt: skip
def test_no_listen_address(text: str) -> None:
    with pytest.raises(InvalidValue):
        parse_listen_address(text)


def test_longest_socket_path() -> None:
    path = "/" + "a" * 106
    assert parse_listen_address(path).path == path


def test_abstract() -> None:
    assert parse_listen_address("@a").is_abstract
    assert not parse_listen_address("/a").is_abstract


def test_fifo() -> None:
    assert parse_fifo("/run/a").path == "/run/a"
    for text in ("", "80", "@a", "/run/"):
        with pytest.raises(InvalidValue):
            parse_fifo(text)


@pytest.mark.parametrize(
    ("text", "mapping"),
    [
        ("80", PortMapping(container_port=80)),
        ("8080:80", PortMapping(container_port=80, host_port=8080)),
        (":80", PortMapping(container_port=80)),
        ("8080:80/udp", PortMapping(container_port=80, host_port=8080, protocol=Protocol.UDP)),
        ("127.0.0.1:8080:80", PortMapping(container_port=80, host_port=8080, host_ip="127.0.0.1")),
        ("127.0.0.1::80", PortMapping(container_port=80, host_ip="127.0.0.1")),
        ("[::1]:8080:80/tcp", PortMapping(container_port=80, host_port=8080, host_ip="::1")),
        ("8000-8009:80-89", PortMapping(container_port=80, host_port=8000, count=10)),
        ("80-89", PortMapping(container_port=80, count=10)),
    ],
)
def test_publish(text: str, mapping: PortMapping) -> None:
    assert parse_publish(text) == mapping


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "80/icmp",
        "0:80",
        "80:70000",
        "1-5:80",
        "9-5:9-5",
        "1.2.3.4.5:80:80",
        "::1:80:80",
        "80:80:80",
        "80/",
        "-0:1",
    ],
)
def test_no_publish(text: str) -> None:
    with pytest.raises(InvalidValue):
        parse_publish(text)


@given(st.text(alphabet="0123456789.:[]@/-%abcvsockudp ", max_size=40))
def test_only_invalid_value_is_raised(text: str) -> None:
    for parse in (parse_listen_address, parse_publish, parse_fifo):
        with suppress(InvalidValue):
            parse(text)
