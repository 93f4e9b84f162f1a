# SPDX-License-Identifier: Apache-2.0
"""What survives the agent: one JSON file per container in the runtime folder, replaced by rename.

It is a cache of what could be found by looking (scopes, pid files, exit files) plus what could not: the definition that
runs, whether the container is wanted, its restart count. A record of another boot is not read: /run is empty by then.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from agent.container.kept import KeptFd
from agent.container.outcome import Outcome
from agent.process import ProcessRef
from agent.status import State


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One container. `wanted` is False once somebody stopped it; `raw` is the definition's table."""

    name: str
    id: str
    state: State
    wanted: bool
    raw: dict[str, Any]
    source: str
    digest: str
    unit: str = ""
    cgroup: str = ""
    conmon: ProcessRef | None = None
    payload: ProcessRef | None = None
    runtime: str = ""
    ready: bool = False
    started_at: float = 0.0
    start_until: float = 0.0
    finished_at: float = 0.0
    exit_code: int | None = None
    oom_killed: bool = False
    restarts: int = 0
    attempt: int = 0
    status_text: str = ""
    health: str = ""
    error: str = ""
    error_code: str = ""
    watchdog_sec: float = 0.0
    image: str = ""
    stop_signal: int = 0
    stored_fds: tuple[KeptFd, ...] = ()

    @property
    def is_at_rest(self) -> bool:
        return self.state in {State.EXITED, State.FAILED, State.INACTIVE}

    def outcome(self) -> Outcome | None:
        """How the last run ended, None before the first end."""
        if self.exit_code is None:
            return None
        return Outcome(
            code=self.exit_code,
            finished_at=self.finished_at,
            oom_killed=self.oom_killed,
            error=self.error,
            error_code=self.error_code,
        )


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


def _path(folder: Path, name: str) -> str:
    return f"{folder}/{name}.json"


def write(folder: Path, record: Record) -> None:
    """Store it. Raises OSError (no space, read-only)."""
    path = _path(folder, record.name)
    fresh = path + ".new"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, _encoder.encode(record))
    except OSError:
        os.unlink(fresh)
        raise
    finally:
        os.close(fd)
    os.rename(fresh, path)


def remove(folder: Path, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(_path(folder, name))


def written_at(folder: Path, name: str) -> float:
    """Unix time of the last write(). Raises OSError."""
    return os.stat(_path(folder, name)).st_mtime


def read_all(folder: Path) -> list[Record]:
    """All readable records; a damaged one counts as absent (the scan for leftovers deals with what it described)."""
    records: list[Record] = []
    with suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            if entry.name.endswith(".json"):
                with suppress(OSError, msgspec.MsgspecError):
                    records.append(_decoder.decode(Path(entry.path).read_bytes()))
    return records
