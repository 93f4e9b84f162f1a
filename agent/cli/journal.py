# SPDX-License-Identifier: Apache-2.0
"""Entries out of the journal: of one container (conmon writes them) and of the agent's events.

conmon's entries have CONTAINER_NAME, CONTAINER_ID_FULL, PRIORITY 6 for stdout and 3 for stderr unless the
text says otherwise, and CONTAINER_PARTIAL_MESSAGE=true for pieces. Anybody may write such fields, so _UID is
matched as well, which journald sets itself (systemd.journal-fields(7)).
"""

from __future__ import annotations

import os
import select
import sys
import time
from typing import TYPE_CHECKING, Any

from systemd import journal

from agent.cli.lines import Line

if TYPE_CHECKING:
    from collections.abc import Iterator

Entry = dict[str, Any]


def of_container(name: str, *, priority: int = 7) -> Any:
    """A reader of what the container and the agent wrote about it."""
    return _reader(priority, f"CONTAINER_NAME={name}")


def of_agent() -> Any:
    """A reader of all that the agent wrote."""
    return _reader(7, "SYSLOG_IDENTIFIER=cleat")


def _reader(priority: int, *matches: str) -> Any:
    reader = journal.Reader(converters=_CONVERTERS)
    for match in (*matches, f"_UID={os.geteuid()}"):
        reader.add_match(match)
    if priority < 7:
        reader.log_level(priority)
    return reader


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _seconds(microseconds: int) -> float:
    return microseconds / 1e6


_CONVERTERS = {
    "MESSAGE": _text,
    "MESSAGE_ID": bytes.decode,
    "EXIT_CODE": int,
    "__REALTIME_TIMESTAMP": _seconds,
}


def is_event(entry: Entry) -> bool:
    return "CLEAT_EVENT" in entry


def is_ours(entry: Entry) -> bool:
    """Whether an entry of that container name is cleat's: podman names its containers in the same field."""
    unit = entry.get("_SYSTEMD_USER_UNIT") or entry.get("_SYSTEMD_UNIT") or ""
    return not str(unit).startswith("libpod-")


def to_line(entry: Entry) -> Line:
    """A container's entry as a line, the agent's as one of the stream "agent"."""
    event = is_event(entry)
    stream = "agent" if event else "stderr" if entry.get("PRIORITY") == journal.LOG_ERR else "stdout"
    return Line(
        time=seconds(entry),
        stream=stream,
        text=str(entry.get("MESSAGE", "")).removesuffix("\n"),
        id=str(entry.get("CONTAINER_ID_FULL", "")),
        partial=entry.get("CONTAINER_PARTIAL_MESSAGE") == "true",
    )


def seconds(entry: Entry) -> float:
    when: float = entry["__REALTIME_TIMESTAMP"]
    return when


def seek(reader: Any, *, last: int | None, since: float, until: float, counts: Any) -> None:
    """Go to where reading begins: `since`, or `last` entries that `counts` accepts before `until` or now."""
    if last is None:
        reader.seek_realtime(since) if since else reader.seek_head()
        return
    if until:
        reader.seek_realtime(until)
    else:
        reader.seek_tail()
    start = ""
    left = last
    while entry := reader.get_previous():
        if seconds(entry) < since or (counts(entry) and (left := left - 1) < 0):
            break
        start = entry["__CURSOR"]
    if start:
        reader.seek_cursor(start)
    else:
        reader.seek_realtime(time.time())


def entries(reader: Any, *, until: float = 0.0, follow: bool = False) -> Iterator[Entry | None]:
    """Entries from where the reader is; None whenever there is no more for now, then the end or a wait."""
    while True:
        while entry := reader.get_next():
            if until and seconds(entry) > until:
                return
            yield entry
        yield None
        if not follow or not _wait(reader):
            return


def _wait(reader: Any) -> bool:
    """Sleep until the journal grew; False when nobody reads our output any more."""
    poll = select.poll()
    poll.register(reader.fileno(), reader.get_events())
    poll.register(sys.stdout.fileno(), 0)
    gone = any(fd == sys.stdout.fileno() for fd, _ in poll.poll(reader.get_timeout_ms()))
    reader.process()
    return not gone
