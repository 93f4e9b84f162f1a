# SPDX-License-Identifier: Apache-2.0
"""What a supervisor can be told while its container runs."""

from __future__ import annotations

import msgspec

from agent.container.outcome import Cause
from agent.systemd.notification import Notification


class Event(msgspec.Struct, frozen=True):
    """Base of all events."""


class Exited(Event, frozen=True):
    """conmon has ended; its exit file tells the rest."""


class StopRequested(Event, frozen=True):
    """Somebody wants it stopped. `cause` is STOPPED for a person, otherwise why the agent does it (it may restart)."""

    timeout_sec: float
    cause: Cause = Cause.STOPPED
    why: str = ""
    is_signalled: bool = False
    """systemd sends the stop signal itself, to the whole scope; a second one would cut a clean end short."""


class StopOverdue(Event, frozen=True):
    """The deadline of a stop step has passed."""


class StartTimedOut(Event, frozen=True):
    """Not ready within TimeoutStartSec=."""


class RuntimeMaxReached(Event, frozen=True):
    """RuntimeMaxSec= is over."""


class WatchdogExpired(Event, frozen=True):
    """No WATCHDOG=1 within WatchdogSec=, or WATCHDOG=trigger."""


class Notified(Event, frozen=True):
    """A verified message on the container's notify socket; `fds` came with it and are the receiver's."""

    message: Notification
    fds: tuple[int, ...] = ()


class HealthChanged(Event, frozen=True):
    """The health check says something else than before; `at_startup` when it was the start-up command's last try."""

    health: str
    output: str
    at_startup: bool = False
