# SPDX-License-Identifier: Apache-2.0
"""A supervisor as values: its status for people and interfaces, its record for the next agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.container import launch
from agent.container.record import Record
from agent.status import Status

if TYPE_CHECKING:
    from agent.container.supervisor import Supervisor


def _both(s: Supervisor) -> dict[str, Any]:
    """What stands in the status and in the record, under the same names."""
    running, last, container = s.running, s.last, s.definition.container
    return {
        "name": s.name,
        "id": running.id if running else s.last_id,
        "state": s.state,
        "ready": s.ready,
        "exit_code": last.code if last else None,
        "oom_killed": bool(last and last.oom_killed),
        "started_at": s.started_at,
        "finished_at": last.finished_at if last else 0.0,
        "restarts": s.restarts,
        "status_text": s.status_text,
        "health": s.health,
        "image": container.image,
    }


def status_of(s: Supervisor) -> Status:
    """Why the last run failed is told until the next one is ready."""
    told = None if s.ready else s.last
    running, container = s.running, s.definition.container
    return Status(
        **_both(s),
        pid=running.payload.pid if running else 0,
        conmon_pid=running.conmon.pid if running else 0,
        health_output=s.health_output,
        unit=s.unit,
        definition=container.source,
        error=told.error if told else "",
        error_code=told.error_code if told else "",
        description=container.description,
        log_path=launch.log_path(s.host, container),
    )


def record_of(s: Supervisor) -> Record:
    running, last, definition = s.running, s.last, s.definition
    return Record(
        **_both(s),
        wanted=s.wanted,
        raw=definition.raw,
        source=definition.container.source,
        digest=definition.digest,
        unit=running.unit if running else "",
        cgroup=running.cgroup if running else "",
        conmon=running.conmon if running else None,
        payload=running.payload if running else None,
        runtime=running.runtime.name if running else "",
        stop_signal=running.stop_signal if running else 0,
        attempt=s.attempt,
        watchdog_sec=s.run.watchdog_sec if s.run else 0.0,
        start_until=s.run.start_until if s.run else 0.0,
        stored_fds=s.listening.kept.all,
        error=last.error if last else "",
        error_code=last.error_code if last else "",
    )
