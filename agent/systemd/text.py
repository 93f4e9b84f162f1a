# SPDX-License-Identifier: Apache-2.0
"""Text from others made fit for one line of the journal or of a notification; pure."""

from __future__ import annotations

LINE_MAX = 2048


def clean(text: str, limit: int = LINE_MAX, *, keep: str = "") -> str:
    """One line of `text`, safe for a terminal: lines joined by "; ", unprintable characters escaped, cut at `limit`.

    Characters in `keep` stay as they are (newline and tab, for fields that are not shown by default).
    """
    if "\n" not in keep and ("\n" in text or "\r" in text):
        lines = (line.strip() for line in text[: 2 * limit].splitlines())
        text = "; ".join(line for line in lines if line).replace(":; ", ": ")
    cut = text[:limit]
    if not cut.isprintable():
        cut = "".join(c if c.isprintable() or c in keep else _escaped(c) for c in cut)
    return cut if len(cut) <= limit and len(text) <= limit else cut[: limit - 1] + "…"


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def one_line(text: str, limit: int = 512) -> str:
    """`text` as the value of one assignment: a newline in it would start another, a NUL end the message.

    Cut, since PID 1 refuses a message of more than 4096 bytes as a whole.
    """
    return clean(" ".join(text[: 4 * limit].split()), limit)
