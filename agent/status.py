# SPDX-License-Identifier: Apache-2.0
"""What can be said of one container: the object of `cleat status --json`, of the D-Bus interface and of the record."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class State(StrEnum):
    """Where a container is in its life. `exited` ended as it should, `failed` did not; both may be started again."""

    INACTIVE = "inactive"
    PULLING = "pulling"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    EXITED = "exited"
    FAILED = "failed"

    @property
    def is_up(self) -> bool:
        """Whether a conmon and a payload (may) exist."""
        return self in {State.STARTING, State.RUNNING, State.PAUSED, State.STOPPING}


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot. Times are Unix seconds (0 = never); `exit_code` is None before the first end."""

    name: str
    id: str = ""
    state: State = State.INACTIVE
    ready: bool = False
    pid: int = 0
    conmon_pid: int = 0
    exit_code: int | None = None
    oom_killed: bool = False
    started_at: float = 0.0
    finished_at: float = 0.0
    restarts: int = 0
    status_text: str = ""
    health: str = ""
    health_output: str = ""
    unit: str = ""
    definition: str = ""
    image: str = ""
    error: str = ""
    error_code: str = ""
    description: str = ""
    log_path: str = ""
