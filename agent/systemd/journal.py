# SPDX-License-Identifier: Apache-2.0
"""Entries to the journal: one structured entry per lifecycle event, and the debug log.

Fields are those of cleat's manual: MESSAGE_ID, CLEAT_EVENT, CLEAT_CONTAINER, CONTAINER_NAME,
CONTAINER_ID_FULL, CLEAT_UNIT, EXIT_CODE, and for errors CODE, REASON, HINT. OBJECT_SYSTEMD_UNIT= names the
handle and the scope: with _UID=0 that is what `journalctl -u cleat@NAME` and `-u cleat-NAME.scope` look for
(journalctl(1), EXAMPLES). The container's own output comes from conmon and has no CLEAT_EVENT.

Written in journald's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL) on a socket of ours:
sd_journal_send(3) blocks while journald does not read, and a stuck journald must not stop the agent. What
cannot be delivered is counted and told by the next entry that gets through. The socket file belongs to PID
1, so a restart of journald loses nothing.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from typing import TYPE_CHECKING

from agent.systemd.datagram import Datagrams
from agent.systemd.events import Event, Priority
from agent.systemd.text import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agent.errors import CleatError

__all__ = ["Event", "Journal", "LogHandler", "Priority", "clean", "entry", "send", "set_up_logging"]

JOURNAL_SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "cleat"
_FIELD_MAX = 4096
_PATIENCE = 0.05
_FIELD_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")

Value = str | int | float | bytes
Fields = list[tuple[str, Value]]


def encode(fields: Iterable[tuple[str, Value]]) -> bytes:
    """Fields in the native protocol: NAME=value, or name, length and bytes for a value with newline."""
    out = bytearray()
    for name, value in fields:
        data = value if isinstance(value, bytes) else str(value).encode(errors="backslashreplace")
        if b"\n" in data:
            out += b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data)
        else:
            out += b"%s=%s\n" % (name.encode(), data)
    return bytes(out)


def _message(message: str, container: str, error: CleatError | None) -> str:
    if error is None:
        return message
    place = ": ".join(part for part in (error.file, error.key) if part)
    text = ": ".join(part for part in (place, error.what, error.why) if part)
    text = f"{text} ({error.hint})" if error.hint else text
    return ": ".join(part for part in (message or container, text) if part)


def _error_fields(error: CleatError) -> Fields:
    fields = [
        ("CODE", error.code),
        ("REASON", error.why or error.what),
        ("HINT", error.hint),
        ("CLEAT_FILE", error.file),
        ("CLEAT_KEY", error.key),
    ]
    return [(name, clean(value, _FIELD_MAX, keep="\n\t")) for name, value in fields if value]


def _extra_fields(extra: dict[str, Value]) -> Fields:
    fields: Fields = []
    for name, value in extra.items():
        name = name.upper()
        if not _FIELD_NAME.fullmatch(name):
            continue
        if isinstance(value, bytes):
            value = value[:_FIELD_MAX]
        elif isinstance(value, str):
            value = clean(value, _FIELD_MAX, keep="\n\t")
        fields.append((name, value))
    return fields


def _unit_fields(container: str, unit: str) -> Fields:
    name = "OBJECT_SYSTEMD_UNIT" if os.geteuid() == 0 else "OBJECT_SYSTEMD_USER_UNIT"
    units = [f"cleat@{container}.service"] if container else []
    return [(name, clean(u)) for u in dict.fromkeys([*units, unit]) if u]


def entry(
    event: Event,
    message: str,
    *,
    container: str = "",
    container_id: str = "",
    unit: str = "",
    priority: int | None = None,
    exit_code: int | None = None,
    error: CleatError | None = None,
    **extra: Value,
) -> Fields:
    """The fields of one event's entry; see send()."""
    container = container or (error.container if error else "")
    fields: Fields = [
        ("MESSAGE", clean(_message(message, container, error))),
        ("MESSAGE_ID", event.message_id),
        ("PRIORITY", int(event.priority if priority is None else priority)),
        ("SYSLOG_IDENTIFIER", IDENTIFIER),
        ("CLEAT_EVENT", event.value),
    ]
    if container:
        fields += [("CLEAT_CONTAINER", clean(container)), ("CONTAINER_NAME", clean(container))]
    if container_id:
        fields.append(("CONTAINER_ID_FULL", clean(container_id)))
    if unit:
        fields.append(("CLEAT_UNIT", clean(unit)))
    if exit_code is not None:
        fields.append(("EXIT_CODE", exit_code))
    fields += _unit_fields(container, unit)
    further = _extra_fields(extra)
    if error is not None:
        given = {name for name, _ in further}
        fields += [field for field in _error_fields(error) if field[0] not in given]
    return fields + further


class Journal:
    """The way to journald. Never raises, never blocks for more than a moment; `dropped` counts what was lost."""

    def __init__(self, address: str = JOURNAL_SOCKET) -> None:
        self._socket = Datagrams(address)
        self.dropped = 0

    def write(self, fields: Iterable[tuple[str, Value]]) -> bool:
        """Send one entry; False when it was dropped."""
        # Once an entry was lost, waiting for each further one would add up.
        if not self._deliver(fields, patience=0.0 if self.dropped else _PATIENCE):
            self.dropped += 1
            return False
        if self.dropped:
            self._tell_dropped()
        return True

    def _tell_dropped(self) -> None:
        text = f"{self.dropped} entries of the agent were lost before the last one: journald did not take them"
        if self._deliver(entry(Event.JOURNAL_DROPPED, text, dropped=self.dropped), patience=0.0):
            self.dropped = 0

    def _deliver(self, fields: Iterable[tuple[str, Value]], *, patience: float) -> bool:
        try:
            self._socket.send(encode(fields), patience=patience)
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._socket.close()


_journal = Journal()


def send(
    event: Event,
    message: str,
    *,
    container: str = "",
    container_id: str = "",
    unit: str = "",
    priority: int | None = None,
    exit_code: int | None = None,
    error: CleatError | None = None,
    **extra: Value,
) -> None:
    """Write one event. `message` is for people and names the container; the rest is for filters.

    With `error` its text is appended to the message (or is the message, when that is empty) and its parts
    become CODE, REASON, HINT, CLEAT_FILE and CLEAT_KEY. `unit` is the container's scope. `extra` are further
    fields, upper-cased. Text from containers may be passed as it is: it is cut and cleaned here. Never
    raises.
    """
    _journal.write(
        entry(
            event,
            message,
            container=container,
            container_id=container_id,
            unit=unit,
            priority=priority,
            exit_code=exit_code,
            error=error,
            **extra,
        )
    )


_LEVELS = (
    (logging.CRITICAL, Priority.CRITICAL),
    (logging.ERROR, Priority.ERROR),
    (logging.WARNING, Priority.WARNING),
    (logging.INFO, Priority.INFO),
)


def priority_of(level: int) -> Priority:
    """The journal's level for one of the logging module."""
    return next((priority for least, priority in _LEVELS if level >= least), Priority.DEBUG)


class LogHandler(logging.Handler):
    """Debug log to the journal: message, level, logger and place in the source, a traceback in its own field."""

    def __init__(self, journal: Journal | None = None) -> None:
        super().__init__()
        self._journal = journal or _journal

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._journal.write(log_entry(record))
        except Exception:  # noqa: BLE001 a bad format string must not end the caller
            self.handleError(record)


def log_entry(record: logging.LogRecord) -> Fields:
    """The fields of one log record."""
    message = record.getMessage()
    fields: Fields = []
    if record.exc_info and record.exc_info[0] is not None:
        message += f": {traceback.format_exception_only(*record.exc_info[:2])[-1].strip()}"
        text = "".join(traceback.format_exception(*record.exc_info))
        fields.append(("EXCEPTION", clean(text[-_FIELD_MAX:], _FIELD_MAX, keep="\n\t")))
    return [
        ("MESSAGE", clean(message)),
        ("PRIORITY", int(priority_of(record.levelno))),
        ("SYSLOG_IDENTIFIER", IDENTIFIER),
        ("LOGGER", record.name),
        ("CODE_FILE", record.pathname),
        ("CODE_LINE", record.lineno),
        ("CODE_FUNC", record.funcName or ""),
        *fields,
    ]


def stderr_is_journal() -> bool:
    """Whether stderr is the journal's stream: $JOURNAL_STREAM is its DEVICE:INODE (systemd.exec(5))."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def set_up_logging(level: int = logging.INFO, *, debug: Sequence[str] = ()) -> None:
    """Log to the journal when it is where stderr goes, else to stderr. `debug` names loggers to hear in full.

    Libraries are heard from WARNING on, `agent` from `level` on.
    """
    handler: logging.Handler = LogHandler() if stderr_is_journal() else logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("agent").setLevel(level)
    for name in debug:
        logging.getLogger(name).setLevel(logging.DEBUG)
