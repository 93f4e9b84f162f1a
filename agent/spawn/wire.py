# SPDX-License-Identifier: Apache-2.0
"""The messages between the agent and the executor: msgpack over a SOCK_SEQPACKET socket, fds by SCM_RIGHTS (unix(7)).

A request that is too long for one datagram comes in a memfd, which is the first of the fds then. More fds than the
kernel takes at once come in further messages before it.
"""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Sequence

import msgspec

from agent import errors
from agent.errors import CleatError
from agent.spawn.request import Request

INLINE_MAX = 32 << 10
PACKET = INLINE_MAX + 4096
FDS_MAX = 250  # SCM_MAX_FD is 253
BODY_MAX = 16 << 20


class Hello(msgspec.Struct, frozen=True, tag=True):
    """What the executor says first: the capabilities that what it starts can have at most, as a mask."""

    bounding_set: int


class Spawn(msgspec.Struct, frozen=True, tag=True):
    """Start a program; answered by Started or Failed, later by Ended. With `long` the request is in the first fd."""

    id: int
    request: Request | None = None
    long: bool = False


class MoreFds(msgspec.Struct, frozen=True, tag=True):
    """Fds that belong to the request that follows, before its own."""


class Notify(msgspec.Struct, frozen=True, tag=True):
    """Tell the service manager `text` as process `pid`; answered by Notified."""

    id: int
    pid: int
    text: str


class Started(msgspec.Struct, frozen=True, tag=True):
    """It has this pid; a pidfd comes along."""

    id: int
    pid: int


class Failed(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Why it could not be started: the parts of a CleatError."""

    id: int
    code: str
    what: str
    why: str = ""
    hint: str = ""
    file: str = ""
    key: str = ""

    @classmethod
    def of(cls, id: int, e: CleatError | OSError) -> Failed:  # noqa: A002
        if isinstance(e, CleatError):
            return cls(id=id, code=e.code, what=e.what, why=e.why, hint=e.hint, file=e.file, key=e.key)
        return cls(
            id=id, code="runtime-failed", what="cannot be started", why=e.strerror or str(e), file=str(e.filename or "")
        )

    def error(self) -> CleatError:
        kind = _KINDS.get(self.code, CleatError)
        return kind(self.what, why=self.why, hint=self.hint, file=self.file, key=self.key)


class Ended(msgspec.Struct, frozen=True, tag=True):
    """Its exit code, 128+n when signal n ended it."""

    id: int
    code: int


class Notified(msgspec.Struct, frozen=True, tag=True):
    """Whether the service manager has it in its queue."""

    id: int
    sent: bool


Question = Spawn | MoreFds | Notify
Answer = Hello | Started | Failed | Ended | Notified

_KINDS = {kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CleatError)}
_encoder = msgspec.msgpack.Encoder()
_to_executor = msgspec.msgpack.Decoder(Question)
_to_agent = msgspec.msgpack.Decoder(Answer)
_request = msgspec.msgpack.Decoder(Request)


def encode(message: Question | Answer) -> bytes:
    return _encoder.encode(message)


def decode_question(data: bytes) -> Question:
    """Raises msgspec.DecodeError."""
    message: Question = _to_executor.decode(data)
    return message


def decode_answer(data: bytes) -> Answer:
    """Raises msgspec.DecodeError."""
    message: Answer = _to_agent.decode(data)
    return message


def packets(id: int, request: Request, fds: Sequence[int]) -> list[tuple[bytes, list[int], int]]:  # noqa: A002
    """What to send for a request: data, fds, and an fd of our own to close afterwards (-1 = none)."""
    found: list[tuple[bytes, list[int], int]] = []
    rest = list(fds)
    while len(rest) > FDS_MAX:
        found.append((encode(MoreFds()), rest[:FDS_MAX], -1))
        rest = rest[FDS_MAX:]
    whole = encode(Spawn(id, request))
    if len(whole) <= INLINE_MAX:
        return [*found, (whole, rest, -1)]
    body = os.memfd_create("request", os.MFD_CLOEXEC)
    with open(body, "wb", closefd=False) as f:
        f.write(_encoder.encode(request))
    return [*found, (encode(Spawn(id, long=True)), [body, *rest], body)]


def long_request(fd: int) -> Request:
    """Raises msgspec.DecodeError, OSError."""
    return _request.decode(os.pread(fd, BODY_MAX, 0))


def send(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One message with its fds, all close-on-exec; b"" when the other side has gone."""
    data, ancillary, _, _ = sock.recvmsg(PACKET, socket.CMSG_SPACE((FDS_MAX + 1) * 4), socket.MSG_CMSG_CLOEXEC)
    fds = array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)
