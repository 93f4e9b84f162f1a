# SPDX-License-Identifier: Apache-2.0
"""The D-Bus wire format, as far as a caller of the agent needs it (D-Bus Specification, "Message Protocol").

Pure: values in, bytes out, and back. Types: y b i u x t d s o g and arrays of them; v and structs are
only read.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

METHOD_CALL, METHOD_RETURN, ERROR, SIGNAL = 1, 2, 3, 4
NO_AUTO_START, ALLOW_INTERACTIVE_AUTHORIZATION = 0x2, 0x4

_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION, _SENDER, _SIGNATURE = range(1, 9)
_NUMBERS = {"y": "B", "b": "I", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d"}
_ALIGNMENT = {"y": 1, "g": 1, "v": 1, "x": 8, "t": 8, "d": 8, "(": 8}
_HEADER_SIZE = 16


class WireError(ValueError):
    """Bytes that are no D-Bus message, or a value that cannot become one."""


class Message(NamedTuple):
    """An incoming message; `reply_to` is the serial of the call that it answers, 0 for none."""

    kind: int
    reply_to: int
    error_name: str
    body: tuple[Any, ...]


class Target(NamedTuple):
    """Whom a call is for."""

    destination: str
    path: str
    interface: str
    member: str


def call(serial: int, target: Target, signature: str, values: tuple[Any, ...], flags: int) -> bytes:
    """One method call, little-endian."""
    body = bytearray()
    for kind, value in zip(split(signature), values, strict=True):
        _write(body, kind, value)
    head = bytearray(struct.pack("<cBBBIII", b"l", METHOD_CALL, flags, 1, len(body), serial, 0))
    fields = [
        (_PATH, "o", target.path),
        (_INTERFACE, "s", target.interface),
        (_MEMBER, "s", target.member),
        (_DESTINATION, "s", target.destination),
    ]
    if signature:
        fields.append((_SIGNATURE, "g", signature))
    for code, kind, value in fields:
        _pad(head, 8)
        head.append(code)
        _write(head, "g", kind)
        _write(head, kind, value)
    struct.pack_into("<I", head, 12, len(head) - _HEADER_SIZE)
    _pad(head, 8)
    return bytes(head + body)


def take(buffer: bytearray) -> Message | None:
    """The first message in `buffer`, removed from it; None as long as it is incomplete."""
    if len(buffer) < _HEADER_SIZE:
        return None
    order = {0x6C: "<", 0x42: ">"}.get(buffer[0])
    if order is None:
        raise WireError(f"byte order {buffer[0]:#x}")
    kind = buffer[1]
    body_size, _serial, fields_size = struct.unpack_from(f"{order}III", buffer, 4)
    body_start = _HEADER_SIZE + fields_size + -fields_size % 8
    if body_start + body_size > 1 << 27:
        raise WireError("longer than 128 MiB")
    if len(buffer) < body_start + body_size:
        return None
    raw = bytes(buffer[: body_start + body_size])
    del buffer[: body_start + body_size]
    try:
        fields = dict(_Reader(raw[: _HEADER_SIZE + fields_size], order, 12).read("a(yv)"))
        body = _Reader(raw[body_start:], order, 0)
        values = tuple(body.read(part) for part in split(fields.get(_SIGNATURE, "")))
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise WireError(f"malformed message: {error}") from error
    return Message(kind, fields.get(_REPLY_SERIAL, 0), fields.get(_ERROR_NAME, ""), values)


def split(signature: str) -> list[str]:
    """The complete types of a signature: "sasa(yv)" is s, as, a(yv)."""
    parts = []
    start = 0
    while start < len(signature):
        end = _type_end(signature, start)
        parts.append(signature[start:end])
        start = end
    return parts


def _type_end(signature: str, start: int) -> int:
    while signature[start : start + 1] == "a":
        start += 1
    if signature[start : start + 1] != "(":
        return start + 1
    depth = 0
    for position in range(start, len(signature)):
        depth += {"(": 1, ")": -1}.get(signature[position], 0)
        if depth == 0:
            return position + 1
    raise WireError(f"signature {signature!r}")


def _pad(out: bytearray, alignment: int) -> None:
    out.extend(bytes(-len(out) % alignment))


def _write(out: bytearray, kind: str, value: Any) -> None:
    if kind.startswith("a"):
        _pad(out, 4)
        size_at = len(out)
        out.extend(bytes(4))
        _pad(out, _ALIGNMENT.get(kind[1], 4))
        start = len(out)
        for item in value:
            _write(out, kind[1:], item)
        struct.pack_into("<I", out, size_at, len(out) - start)
        return
    _pad(out, _ALIGNMENT.get(kind, 4))
    if number := _NUMBERS.get(kind):
        out.extend(struct.pack(f"<{number}", value))
        return
    text = _utf8(value)
    out.extend(bytes([len(text)]) if kind == "g" else struct.pack("<I", len(text)))
    out.extend(text + b"\0")


def _utf8(text: str) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise WireError(f"{text!a} is not valid UTF-8") from None
    if b"\0" in raw:
        raise WireError(f"{text!a} contains a NUL character")
    return raw


class _Reader:
    """A cursor over one marshalled block; alignment counts from the start of `data`."""

    def __init__(self, data: bytes, order: str, position: int) -> None:
        self.data = data
        self.order = order
        self.position = position

    def read(self, kind: str) -> Any:
        if kind[0] == "a":
            return self._array(kind[1:])
        self._align(_ALIGNMENT.get(kind[0], 4))
        if kind[0] == "(":
            return tuple(self.read(part) for part in split(kind[1:-1]))
        if kind == "v":
            return self.read(self._text("B"))
        if kind in {"s", "o"}:
            return self._text("I")
        if kind == "g":
            return self._text("B")
        number = _NUMBERS.get(kind)
        if number is None:
            raise WireError(f"type {kind!r} is not read here")
        value = self._number(number)
        return bool(value) if kind == "b" else value

    def _array(self, kind: str) -> list[Any]:
        self._align(4)
        size = self._number("I")
        self._align(_ALIGNMENT.get(kind[0], 4))
        end = self.position + size
        if end > len(self.data):
            raise WireError("array longer than its message")
        items = []
        while self.position < end:
            items.append(self.read(kind))
        return items

    def _align(self, alignment: int) -> None:
        self.position += -self.position % alignment

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"{self.order}{code}", self.data, self.position)
        self.position += struct.calcsize(code)
        return value

    def _text(self, length_code: str) -> str:
        size: int = self._number(length_code)
        text = self.data[self.position : self.position + size]
        if len(text) < size:
            raise WireError("string longer than its message")
        self.position += size + 1
        return text.decode()
