# SPDX-License-Identifier: Apache-2.0
"""The D-Bus wire format against an independent reader and writer of it, dbus-next."""

from __future__ import annotations

import contextlib
import io
import struct
from typing import Any

import pytest
from dbus_next import Message, MessageType, Variant
from dbus_next._private.unmarshaller import Unmarshaller
from hypothesis import given
from hypothesis import strategies as st

from agent.cli import wire

TARGET = wire.Target("org.cleat.Agent1", "/org/cleat/Agent1", "org.cleat.Agent1.Manager", "Start")
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


def read_by_peer(data: bytes) -> Message:
    message = Unmarshaller(io.BytesIO(data)).unmarshall()
    assert isinstance(message, Message)
    return message


def written_by_peer(signature: str, body: list[Any], serial: int = 7) -> bytes:
    message = Message(
        message_type=MessageType.METHOD_RETURN, reply_serial=41, signature=signature, body=body, serial=serial
    )
    return bytes(message._marshall())  # noqa: SLF001 the only way to its bytes


def taken(data: bytes) -> wire.Message:
    message = wire.take(bytearray(data))
    assert message is not None
    return message


@given(
    name=TEXT, number=st.integers(-(1 << 31), (1 << 31) - 1), span=st.integers(0, (1 << 64) - 1), names=st.lists(TEXT)
)
def test_calls_are_read_by_a_peer(name: str, number: int, span: int, names: list[str]) -> None:
    flags = wire.NO_AUTO_START | wire.ALLOW_INTERACTIVE_AUTHORIZATION
    message = read_by_peer(wire.call(3, TARGET, "sitasb", (name, number, span, names, True), flags))
    assert message.body == [name, number, span, names, True]
    assert (message.destination, message.path, message.interface, message.member) == TARGET
    assert message.serial == 3
    assert message.flags.value == flags


@given(st.lists(TEXT), TEXT, st.integers(-(1 << 31), (1 << 31) - 1), st.booleans())
def test_answers_of_a_peer_are_read(names: list[str], text: str, number: int, yes: bool) -> None:  # noqa: FBT001
    message = taken(written_by_peer("assibtd", [names, text, number, yes, 1 << 63, 0.5]))
    assert message == wire.Message(wire.METHOD_RETURN, 41, "", (names, text, number, yes, 1 << 63, 0.5))


def test_variants_and_structs_are_read() -> None:
    body = [[["a", Variant("(si)", ["b", 1])], ["c", Variant("as", [])]], Variant("y", 3)]
    assert taken(written_by_peer("a(sv)v", body)).body == ([("a", ("b", 1)), ("c", [])], 3)


def test_an_empty_array_of_wide_items_is_padded() -> None:
    assert taken(written_by_peer("ats", [[], "x"])).body == ([], "x")
    assert read_by_peer(wire.call(1, TARGET, "ats", ([], "x"), 0)).body == [[], "x"]


def test_big_endian_answers_are_read() -> None:
    fields = (
        struct.pack(">BBBBI", 5, 1, ord("u"), 0, 41) + struct.pack(">BBBBBB", 8, 1, ord("g"), 0, 1, ord("i")) + b"\0"
    )
    head = struct.pack(">cBBBIII", b"B", wire.METHOD_RETURN, 1, 1, 4, 9, len(fields))
    data = head + fields + bytes(-len(fields) % 8) + struct.pack(">i", -2)
    assert taken(data) == wire.Message(wire.METHOD_RETURN, 41, "", (-2,))


def test_messages_come_in_pieces_and_several_at_once() -> None:
    stream = written_by_peer("s", ["one"]) + written_by_peer("s", ["two"])
    buffer = bytearray()
    got = []
    for byte in stream:
        buffer.append(byte)
        while message := wire.take(buffer):
            got.append(message.body)
    assert got == [("one",), ("two",)]
    assert not buffer


@given(st.binary(max_size=200))
def test_garbage_raises_one_kind_of_error(data: bytes) -> None:
    with contextlib.suppress(wire.WireError):
        wire.take(bytearray(data))


@given(st.integers(0, 60), st.integers(0, 255))
def test_a_damaged_message_raises_one_kind_of_error(place: int, value: int) -> None:
    data = bytearray(written_by_peer("sas", ["text", ["a", "b"]]))
    data[place % len(data)] = value
    with contextlib.suppress(wire.WireError):
        wire.take(data)


@pytest.mark.parametrize("text", ["a\0b", "\udcff"])
def test_strings_that_d_bus_cannot_carry_are_refused(text: str) -> None:
    with pytest.raises(wire.WireError):
        wire.call(1, TARGET, "s", (text,), 0)


def test_signatures_are_split_into_complete_types() -> None:
    assert wire.split("sasa(yv)aait") == ["s", "as", "a(yv)", "aai", "t"]
    with pytest.raises(wire.WireError):
        wire.split("(s")
