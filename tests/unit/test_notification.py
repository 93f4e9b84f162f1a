# SPDX-License-Identifier: Apache-2.0
"""Messages of the notify protocol, as containers may send them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.systemd.notification import BadMessage, Notification, Phase, is_fd_name, parse


def test_readiness_with_status() -> None:
    assert parse(b"READY=1\nSTATUS=serving\n") == Notification(ready=True, status="serving")


@pytest.mark.parametrize(
    "data", [b"", b"\n\n", b"READY", b"READY=0", b"READY=yes", b"READY=1 ", b" READY=1", b"X_OWN=1"]
)
def test_what_says_nothing(data: bytes) -> None:
    assert parse(data) == Notification()


@pytest.mark.parametrize(
    ("data", "phase"),
    [
        (b"READY=1", Phase.READY),
        (b"RELOADING=1\nMONOTONIC_USEC=5", Phase.RELOADING),
        (b"RELOADING=1\nREADY=1", Phase.READY),
        (b"READY=1\nSTOPPING=1", Phase.STOPPING),
        (b"STATUS=x", None),
    ],
)
def test_phase(data: bytes, phase: Phase | None) -> None:
    assert parse(data).phase is phase


def test_one_trailing_nul_is_allowed_and_none_inside() -> None:
    assert parse(b"READY=1\0").ready
    for data in (b"READY=1\0\0", b"READY=1\0STATUS=x"):
        with pytest.raises(BadMessage, match="NUL"):
            parse(data)


def test_size_limit() -> None:
    assert parse(b"STATUS=" + b"x" * 4089).status is not None
    with pytest.raises(BadMessage, match="4096"):
        parse(b"STATUS=" + b"x" * 4090)


def test_the_first_of_repeated_assignments_counts() -> None:
    assert parse(b"STATUS=a\nSTATUS=b").status == "a"


def test_status_is_one_clean_line() -> None:
    assert parse(b"STATUS=a\x1b[2Jb\rc\x07").status == "a\\x1b[2Jb; c\\x07"
    assert parse("STATUS=grün ‮x".encode()).status == "grün \\u202ex"
    assert parse(b"STATUS=").status == ""
    assert parse(b"STATUS=\xff").refused == ("STATUS",)


def test_the_main_process_is_not_for_the_container_to_say() -> None:
    message = parse(b"MAINPID=1\nNOTIFYACCESS=all\nREADY=1")
    assert message.ready
    assert message.refused == ("MAINPID", "NOTIFYACCESS")


@pytest.mark.parametrize(
    ("data", "field", "value"),
    [
        (b"ERRNO=2", "errno", 2),
        (b"EXIT_STATUS=7", "exit_status", 7),
        (b"WATCHDOG_USEC=500000", "watchdog_usec", 500000),
        (b"EXTEND_TIMEOUT_USEC=1", "extend_timeout_usec", 1),
        (b"MONOTONIC_USEC=18446744073709551614", "monotonic_usec", 2**64 - 2),
        (b"BUSERROR=org.freedesktop.DBus.Error.TimedOut", "bus_error", "org.freedesktop.DBus.Error.TimedOut"),
        (b"WATCHDOG=1", "watchdog", True),
        (b"WATCHDOG=trigger", "watchdog_trigger", True),
    ],
)
def test_values(data: bytes, field: str, value: object) -> None:
    message = parse(data)
    assert getattr(message, field) == value
    assert message.refused == ()


@pytest.mark.parametrize(
    "data",
    [
        b"ERRNO=-1",
        b"ERRNO=4096",
        b"ERRNO=",
        b"ERRNO=0x10",
        b"ERRNO=1_0",
        "ERRNO=²".encode(),
        b"EXIT_STATUS=256",
        b"WATCHDOG_USEC=0",
        b"EXTEND_TIMEOUT_USEC=18446744073709551616",
        b"MONOTONIC_USEC=" + b"9" * 3000,
        b"BUSERROR=nodots",
        b"BUSERROR=a.b\x1b",
    ],
)
def test_wrong_values_are_named(data: bytes) -> None:
    message = parse(data)
    assert message == Notification(refused=(data.partition(b"=")[0].decode(),))


def test_barrier_is_alone_with_one_fd() -> None:
    assert parse(b"BARRIER=1", 1) == Notification(barrier=True)
    assert parse(b"BARRIER=1\n", 1).barrier
    for data, fds in ((b"BARRIER=1", 0), (b"BARRIER=1", 2), (b"BARRIER=1\nREADY=1", 1)):
        with pytest.raises(BadMessage, match="alone"):
            parse(data, fds)


def test_fd_store() -> None:
    message = parse(b"FDSTORE=1\nFDNAME=listener\nFDPOLL=0", 2)
    assert (message.fd_store, message.fd_name, message.fd_poll) == (True, "listener", False)
    assert parse(b"FDSTORE=1", 1).fd_name is None
    assert parse(b"FDSTORE=1", 0) == Notification(refused=("FDSTORE",))


def test_fd_store_remove_needs_a_name() -> None:
    assert parse(b"FDSTOREREMOVE=1\nFDNAME=a").fd_store_remove
    assert parse(b"FDSTOREREMOVE=1") == Notification(refused=("FDSTOREREMOVE",))


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", "ü", "x" * 256, "a\x7f"])
def test_bad_fd_names(name: str) -> None:
    assert not is_fd_name(name)


@given(st.binary(max_size=5000), st.integers(0, 253))
def test_any_bytes(data: bytes, fds: int) -> None:
    try:
        message = parse(data, fds)
    except BadMessage:
        return
    assert message.status is None or message.status.isprintable()


_NAMES = st.sampled_from(
    [
        *("READY", "RELOADING", "STOPPING", "STATUS", "ERRNO", "BUSERROR", "WATCHDOG", "WATCHDOG_USEC"),
        *("EXTEND_TIMEOUT_USEC", "FDSTORE", "FDNAME", "FDPOLL", "FDSTOREREMOVE", "MAINPID", "BARRIER"),
        *("EXIT_STATUS", "MONOTONIC_USEC", "X"),
    ]
)
_VALUES = st.sampled_from([b"1", b"0", b"trigger", b"a.b"]) | st.binary(max_size=30)


@given(st.lists(st.tuples(_NAMES, _VALUES), max_size=12), st.integers(0, 3))
def test_any_assignments(pairs: list[tuple[str, bytes]], fds: int) -> None:
    data = b"\n".join(name.encode() + b"=" + value for name, value in pairs)
    try:
        message = parse(data, fds)
    except BadMessage:
        return
    assert message.ready == (b"READY=1" in data.removesuffix(b"\0").split(b"\n"))
    assert not message.fd_store or fds
    assert message.fd_name is None or is_fd_name(message.fd_name)
    assert message.errno is None or 0 <= message.errno < 4096
