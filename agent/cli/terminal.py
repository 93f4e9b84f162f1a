# SPDX-License-Identifier: Apache-2.0
"""The caller's terminal: raw mode that always ends, its size, the keys that detach."""

from __future__ import annotations

import contextlib
import os
import termios
import tty
from typing import TYPE_CHECKING

from agent.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIZE_MAX = 1000  # newer conmons ignore a resize beyond it


@contextlib.contextmanager
def raw(fd: int, *, wanted: bool) -> Iterator[None]:
    """Pass every key on as it is while inside; does nothing unless `wanted` and `fd` is a terminal."""
    if not (wanted and os.isatty(fd)):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal itself may be gone
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def size() -> tuple[int, int]:
    """(columns, lines) of the first of stdin, stdout, stderr that is a terminal; (0, 0) without one."""
    for fd in range(3):
        with contextlib.suppress(OSError):
            columns, lines = os.get_terminal_size(fd)
            return min(columns, _SIZE_MAX), min(lines, _SIZE_MAX)
    return 0, 0


def parse_keys(text: str) -> bytes:
    """The bytes of a key sequence such as "ctrl-p,ctrl-q" or "a,ctrl-@"; "" for none (podman-attach(1))."""
    return bytes(_key(part) for part in text.split(",")) if text else b""


def _key(name: str) -> int:
    lowered = name.lower()
    if len(name) == 1 and name.isascii() and name.isprintable():
        return ord(name)
    if lowered.startswith("ctrl-") and len(name) == 6 and "@" <= (last := name[5].upper()) <= "_":
        return ord(last) - ord("@")
    raise InvalidArgument(
        f"--detach-keys: {name!r} is no key",
        hint="letters, and ctrl- with a letter or one of @[\\]^_, by commas",
    )


class KeyMatcher:
    """Finds the detach keys in what is typed, also when they come one by one."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What to pass on, and whether the sequence was completed; its beginning is held back."""
        if not self._keys:
            return data, False
        data = self._held + data
        position = data.find(self._keys)
        if position >= 0:
            return data[:position], True
        held = next(n for n in range(min(len(self._keys) - 1, len(data)), -1, -1) if data.endswith(self._keys[:n]))
        self._held = data[len(data) - held :]
        return data[: len(data) - held], False
