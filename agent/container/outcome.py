# SPDX-License-Identifier: Apache-2.0
"""How a run ended and what follows from it; pure. The rules are systemd.service(5)'s for Restart=."""

from __future__ import annotations

import signal
from enum import StrEnum

import msgspec

from agent.definition.model import Restart, Service, ServiceType

_CLEAN_SIGNALS = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE})
_STABLE_RUN_MIN = 10.0
UNKNOWN_EXIT_CODE = -1


class Cause(StrEnum):
    """What ended a run, in the words of systemd's Result= where it has one."""

    EXIT = "exit-code"
    OOM = "oom-kill"
    WATCHDOG = "watchdog"
    TIMEOUT = "timeout"
    UNHEALTHY = "unhealthy"
    LOST = "lost"
    START_FAILED = "start-failed"
    STOPPED = "stopped"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The end of one run. `code` is 0-255, 128+n for signal n, or -1 when nobody knows."""

    code: int
    cause: Cause = Cause.EXIT
    finished_at: float = 0.0
    oom_killed: bool = False
    error: str = ""
    error_code: str = ""

    @property
    def signal(self) -> int:
        """The signal that ended the payload, 0 for none."""
        return self.code - 128 if 128 < self.code < 128 + signal.NSIG else 0

    def is_clean(self, service: Service) -> bool:
        """Whether it ended as it should: status 0, SuccessExitStatus=, and for a service also the friendly signals."""
        if self.cause is Cause.STOPPED:
            return True
        if self.cause is not Cause.EXIT or self.oom_killed:
            return False
        if self.code == 0 or self.code in service.success_exit_status:
            return True
        return service.type is not ServiceType.ONESHOT and self.signal in _CLEAN_SIGNALS

    def describe(self) -> str:
        """A few words for people: `status 1`, `signal SIGKILL`, `out of memory`."""
        if self.error:
            return self.error
        if self.oom_killed:
            return "killed by the kernel: out of memory"
        if self.signal:
            try:
                name = signal.Signals(self.signal).name
            except ValueError:
                name = str(self.signal)
            return f"ended by signal {name}"
        return "ended, exit code unknown" if self.code < 0 else f"exited with status {self.code}"


def should_restart(service: Service, outcome: Outcome) -> bool:
    """Whether Restart= asks for another run after this one."""
    if outcome.cause is Cause.STOPPED:
        return False
    if outcome.code in service.restart_prevent_exit_status:
        return False
    if outcome.code in service.restart_force_exit_status:
        return True
    clean = outcome.is_clean(service)
    watchdog = outcome.cause in {Cause.WATCHDOG, Cause.UNHEALTHY}
    aborted = not clean and (bool(outcome.signal) or outcome.oom_killed or outcome.cause is Cause.LOST)
    abnormal = aborted or watchdog or outcome.cause is Cause.TIMEOUT
    match service.restart:
        case Restart.NO:
            return False
        case Restart.ALWAYS:
            return True
        case Restart.ON_SUCCESS:
            return clean
        case Restart.ON_FAILURE:
            return not clean
        case Restart.ON_ABNORMAL:
            return abnormal
        case Restart.ON_ABORT:
            return aborted and not watchdog
        case Restart.ON_WATCHDOG:
            return watchdog


def restart_delay(service: Service, attempt: int) -> float:
    """Seconds before restart number `attempt` (from 0): RestartSec= growing to RestartMaxDelaySec= in RestartSteps=."""
    first, last, steps = service.restart_sec, service.restart_max_delay_sec, service.restart_steps
    if steps <= 0 or last <= first:
        return first
    if attempt >= steps:
        return last
    # A zero first delay cannot grow by a factor; one millisecond stands for it.
    base = max(first, 0.001)
    return first if attempt == 0 else base * float((last / base) ** (attempt / steps))


def was_stable(uptime: float, delay: float) -> bool:
    """Whether a run lasted long enough to start the restart delays afresh: ten times the last delay, at least 10 s."""
    return uptime >= max(_STABLE_RUN_MIN, 10 * delay)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What follows from the end of a run: seconds until the next start (None: no other run), restarts so far."""

    delay: float | None = None
    attempt: int = 0
    start_limit_hit: bool = False


def judge(
    service: Service, outcome: Outcome, *, attempt: int, uptime: float | None, starts: list[float], now: float
) -> Verdict:
    """Whether and when there is another run. A stable one starts the count of restarts afresh.

    `uptime` in seconds, None when the program never ran; `starts` are all so far, by the clock of `now`.
    """
    delay = restart_delay(service, attempt)
    if uptime is not None and was_stable(uptime, delay):
        attempt, delay = 0, service.restart_sec
    if not should_restart(service, outcome):
        return Verdict(attempt=attempt)
    if start_limit_hit(service, starts, now):
        return Verdict(attempt=attempt, start_limit_hit=True)
    return Verdict(delay=delay, attempt=attempt + 1)


def start_limit_hit(service: Service, starts: list[float], now: float) -> bool:
    """Whether StartLimitBurst= starts happened within StartLimitIntervalSec=; 0 of either means no limit."""
    if service.start_limit_burst <= 0 or service.start_limit_interval_sec <= 0:
        return False
    recent = [t for t in starts if now - t < service.start_limit_interval_sec]
    return len(recent) >= service.start_limit_burst
