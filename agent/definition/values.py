# SPDX-License-Identifier: Apache-2.0
"""Text to value and back, pure: time spans, sizes, modes, signals, exit statuses, names.

Grammars are systemd's: systemd.time(7) for spans, systemd.exec(5) and parse-util.c for sizes (base 1024), signal(7),
systemd.exec(5) "Process Exit Codes". Every parser raises InvalidValue with a reason that can follow "KEY: ".
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Iterable

NAME_MAX = 64
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class InvalidValue(ValueError):
    """A value that cannot be used: why, and what to write instead."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


def shown(value: object, limit: int = 60) -> str:
    """A value as it may stand in a message: quoted, on one line, shortened."""
    text = ("true" if value else "false") if isinstance(value, bool) else repr(value)
    if isinstance(value, str):
        text = '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in value[: limit + 1]) + '"'
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


# Time spans

_USEC_MAX = 2**64 - 2
_UNITS = {
    1e-6: ("us", "usec", "µs", "μs"),
    1e-3: ("ms", "msec"),
    1.0: ("", "s", "sec", "second", "seconds"),
    60.0: ("m", "min", "minute", "minutes"),
    3600.0: ("h", "hr", "hour", "hours"),
    86400.0: ("d", "day", "days"),
    604800.0: ("w", "week", "weeks"),
    2629800.0: ("M", "month", "months"),
    31557600.0: ("y", "year", "years"),
}
_SECONDS = {name: seconds for seconds, names in _UNITS.items() for name in names}
_SPAN_PART = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Zµμ]*)\s*", re.ASCII)


def parse_time_span(value: str | float) -> float:
    """Seconds of a systemd.time(7) span: "1min 30s", "infinity" (math.inf); a plain number is seconds."""
    if isinstance(value, str):
        seconds = _span_text(value)
    elif not math.isfinite(value) or value < 0:
        raise InvalidValue(f"{value} is not a time span", 'write a number of seconds from 0 up, or "infinity"')
    else:
        seconds = float(value)
    if math.isfinite(seconds) and seconds * 1e6 > _USEC_MAX:
        raise InvalidValue(f"{shown(value)} is too long for a time span", 'write "infinity"')
    return round(seconds, 6) if math.isfinite(seconds) else seconds


def _span_text(text: str) -> float:
    if text.strip() == "infinity":
        return math.inf
    position, seconds = 0, 0.0
    while position < len(text) or not text:
        part = _SPAN_PART.match(text, position)
        if part is None:
            raise InvalidValue(f"{shown(text)} is not a time span", 'write for example "90s", "1min 30s" or "infinity"')
        number, unit = part.groups()
        if unit not in _SECONDS:
            raise InvalidValue(
                f"{shown(text)}: {shown(unit)} is not a unit of time",
                "units are us, ms, s, min, h, d, w, month, y",
            )
        seconds += float(number) * _SECONDS[unit]
        position = part.end()
    return seconds


def format_time_span(seconds: float) -> str:
    """The shortest exact spelling in weeks to microseconds: 90.0 is "1min 30s"."""
    if math.isinf(seconds):
        return "infinity"
    left = round(seconds * 1e6)
    parts = []
    for unit, size in (
        ("w", 604_800_000_000),
        ("d", 86_400_000_000),
        ("h", 3_600_000_000),
        ("min", 60_000_000),
        ("s", 1_000_000),
        ("ms", 1000),
        ("us", 1),
    ):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts) or "0"


# Sizes

_SIZE_PART = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", re.ASCII)
_EXPONENTS = {letter: exponent for exponent, letter in enumerate(["", "K", "M", "G", "T", "P", "E"])} | {"B": 0}
_SIZE_MAX = 2**64 - 1


def parse_size(value: str | int, *, base: int = 1024) -> int:
    """Bytes of "512M" or "1.5G" (K, M, G, T, P, E), or of a plain number. "1G 512M" adds up, as in systemd."""
    size = value if isinstance(value, int) else _size_text(value, base)
    if size < 0:
        raise InvalidValue(f"{size} is not a size", "write a number of bytes from 0 up")
    if size > _SIZE_MAX:
        raise InvalidValue(f"{shown(value)} is too large for a size", "the largest is below 16E")
    return size


def _size_text(text: str, base: int) -> int:
    position, size, last = 0, 0, 7
    while position < len(text) or not text:
        part = _SIZE_PART.match(text, position)
        if part is None:
            raise InvalidValue(f"{shown(text)} is not a size", 'write for example "512M" or "1.5G"')
        number, unit = part.groups()
        exponent = _EXPONENTS.get(unit)
        if exponent is None:
            raise InvalidValue(f"{shown(text)} is not a size", _size_hint(number, unit))
        if exponent >= last:
            raise InvalidValue(f"{shown(text)} is not a size", 'parts go from large to small, as in "1G 512M"')
        whole, _, fraction = number.partition(".")
        size += int(whole[:24]) * base**exponent if len(whole) <= 24 else _SIZE_MAX + 1
        size += int(f"{fraction or 0}"[:18]) * base**exponent // 10 ** len(fraction[:18])
        position, last = part.end(), exponent
    return size


def _size_hint(number: str, unit: str) -> str:
    letter = unit[:1].upper()
    if letter in _EXPONENTS and unit.upper() in {letter, f"{letter}B", f"{letter}IB"}:
        return f'write "{number}{letter}", which counts in steps of 1024'
    return "suffixes are K, M, G, T, P and E"


def format_size(size: int) -> str:
    """ "512M" where that is exact, else the number with one decimal, "1.4G"."""
    for letter in "EPTGMK":
        unit = 1024 ** _EXPONENTS[letter]
        if size >= unit:
            return f"{size // unit}{letter}" if size % unit == 0 else f"{size / unit:.1f}{letter}"
    return str(size)


# Modes, signals, exit statuses


def parse_mode(value: str) -> int:
    """An access mode in octal, "0660"."""
    if not re.fullmatch(r"[0-7]{1,5}", value, re.ASCII) or int(value, 8) > 0o7777:
        raise InvalidValue(f"{shown(value)} is not an access mode", 'write octal digits, "0660"')
    return int(value, 8)


# 34 and 64 are what the C library leaves of the kernel's 32 to 64 for real-time signals.
_RTMIN, _RTMAX = 34, 64
_REAL_TIME = re.compile(r"RTM(IN\+|AX-)([0-9]{1,2})", re.ASCII)
_SIGNALS = {s.name.removeprefix("SIG"): int(s) for s in signal.Signals} | {"CLD": int(signal.SIGCHLD)}


def parse_signal(value: str | int) -> int:
    """A signal's number: 15, "15", "SIGTERM", "TERM", "SIGRTMIN+3"."""
    if isinstance(value, int) or (value.isascii() and value.isdigit() and len(value) < 4):
        if 1 <= int(value) <= _RTMAX:
            return int(value)
        raise InvalidValue(f"{value} is not a signal", f"signals are 1 to {_RTMAX}")
    name = value.upper().removeprefix("SIG")
    number = _SIGNALS.get(name)
    if number is None and (found := _REAL_TIME.fullmatch(name)):
        number = _RTMIN + int(found[2]) if found[1] == "IN+" else _RTMAX - int(found[2])
        number = number if _RTMIN <= number <= _RTMAX else None
    if number is None:
        raise InvalidValue(f"{shown(value)} is not a signal", nearest_hint(name, _SIGNALS, prefix="SIG"))
    return number


def signal_name(number: int) -> str:
    """ "SIGTERM", "SIGRTMIN+3"; the number itself where there is no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - _RTMIN}" if _RTMIN < number < _RTMAX else str(number)


EXIT_STATUSES = {
    "SUCCESS": 0,
    "FAILURE": 1,
    "INVALIDARGUMENT": 2,
    "NOTIMPLEMENTED": 3,
    "NOPERMISSION": 4,
    "NOTINSTALLED": 5,
    "NOTCONFIGURED": 6,
    "NOTRUNNING": 7,
    "USAGE": 64,
    "DATAERR": 65,
    "NOINPUT": 66,
    "NOUSER": 67,
    "NOHOST": 68,
    "UNAVAILABLE": 69,
    "SOFTWARE": 70,
    "OSERR": 71,
    "OSFILE": 72,
    "CANTCREAT": 73,
    "IOERR": 74,
    "TEMPFAIL": 75,
    "PROTOCOL": 76,
    "NOPERM": 77,
    "CONFIG": 78,
}
"""systemd.exec(5): LSB's and BSD's exit codes by name."""


def parse_exit_status(value: str | int) -> int:
    """An exit code: 0 to 255, a name (TEMPFAIL), or a signal's name, which stands for 128 + its number."""
    if isinstance(value, int) or (value.isascii() and value.isdigit() and len(value) < 5):
        if 0 <= int(value) <= 255:
            return int(value)
        raise InvalidValue(f"{value} is not an exit status", "exit statuses are 0 to 255")
    name = value.upper().removeprefix("EX_")
    if name in EXIT_STATUSES:
        return EXIT_STATUSES[name]
    try:
        return 128 + parse_signal(value)
    except InvalidValue:
        raise InvalidValue(
            f"{shown(value)} is neither an exit status nor a signal",
            nearest_hint(name, [*EXIT_STATUSES, *(f"SIG{s}" for s in _SIGNALS)]),
        ) from None


# Names


def check_name(name: str) -> str:
    """A container's name: NAME or NAME@INSTANCE, at most 64 characters. Returned as it is."""
    base, at, instance = name.partition("@")
    if not _NAME.fullmatch(base):
        raise InvalidValue(
            f"{shown(name)} is not a container name",
            "small letters, digits, '_', '.', '-'; the first a letter or digit",
        )
    if at and not _INSTANCE.fullmatch(instance):
        raise InvalidValue(
            f"{shown(name)} is not the name of an instance", "letters, digits, '_', '.', '-' follow the '@'"
        )
    if len(name) > NAME_MAX:
        raise InvalidValue(f"{shown(name)} is not a container name", f"it may have at most {NAME_MAX} characters")
    return name


def template_of(name: str) -> str:
    """ "web@" for "web@1", "" for a name without an instance."""
    base, at, _ = name.partition("@")
    return f"{base}@" if at else ""


# The nearest word


def nearest(word: str, words: Iterable[str]) -> str:
    """The word most like `word`, or ""."""
    import difflib  # only needed once something is wrong

    found = difflib.get_close_matches(word, list(words), 1, 0.66 if len(word) > 3 else 0.5)
    return found[0] if found else ""


def nearest_hint(word: str, words: Iterable[str], *, prefix: str = "") -> str:
    found = nearest(word, words)
    return f'did you mean "{prefix}{found}"?' if found else ""
