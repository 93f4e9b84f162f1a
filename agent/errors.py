# SPDX-License-Identifier: Apache-2.0
"""The one family of errors.

CleatError                  failed               exit 1
├── InvalidArgument         invalid-argument          2   also ValueError
├── NoSuchContainer         no-such-container         4   also LookupError
├── InvalidState            invalid-state             1   the container's state does not allow it
├── AccessDenied            access-denied             1   the caller may not do this
├── AgentUnreachable        agent-unreachable         1   also ConnectionError
├── DefinitionRejected      definition-rejected       1   also ValueError
├── DeadlineExceeded        deadline-exceeded         1   also TimeoutError
├── BusLost                 bus-lost                  1   also ConnectionError
├── ScopeFailed             scope-failed            125
│   └── UnitExists              unit-exists         125   a unit of that name is loaded already
├── Unsupported             unsupported             125   the installed tool, kernel or host cannot do it
├── PullFailed              pull-failed             125
├── ConmonFailed            conmon-failed           125
├── ConmonLost              conmon-lost             125   conmon ended without an exit file
└── RuntimeFailed           runtime-failed          125
    ├── CommandNotExecutable    permission-denied   126   also PermissionError
    └── CommandNotFound         not-found           127   also FileNotFoundError

`code` is stable: scripts, journal fields (CODE=) and D-Bus error names are made from it. 125 to 127 are podman's
and the shell's numbers for "could not run it at all", "found but not executable" and "not found".
"""

from __future__ import annotations

from typing import ClassVar

DBUS_ERROR_PREFIX = "org.cleat.Agent1.Error."


class CleatError(Exception):
    """What failed, on which container, file and key, why in the failing tool's own words, and what to do about it."""

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1

    def __init__(
        self, what: str, *, container: str = "", file: str = "", key: str = "", why: str = "", hint: str = ""
    ) -> None:
        super().__init__(what)
        self.what = what
        self.container = container
        self.file = file
        self.key = key
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.container}: {self.detail}" if self.container else self.detail

    @property
    def detail(self) -> str:
        """The text without the container's name, for places that show it already."""
        place = ": ".join(part for part in (self.file, self.key) if part)
        text = ": ".join(part for part in (place, self.what, self.why) if part)
        return f"{text} ({self.hint})" if self.hint else text

    @classmethod
    def dbus_name(cls) -> str:
        """The D-Bus error name: `no-such-container` becomes org.cleat.Agent1.Error.NoSuchContainer."""
        return DBUS_ERROR_PREFIX + "".join(word.capitalize() for word in cls.code.split("-"))


class InvalidArgument(CleatError, ValueError):
    code = "invalid-argument"
    exit_code = 2


class NoSuchContainer(CleatError, LookupError):
    code = "no-such-container"
    exit_code = 4


class ExecutorLost(CleatError):
    """The executor ended before its answer."""

    code = "executor-lost"


class InvalidState(CleatError):
    code = "invalid-state"


class AccessDenied(CleatError):
    code = "access-denied"


class AgentUnreachable(CleatError, ConnectionError):
    code = "agent-unreachable"


class DefinitionRejected(CleatError, ValueError):
    code = "definition-rejected"


class DeadlineExceeded(CleatError, TimeoutError):
    code = "deadline-exceeded"


class BusLost(CleatError, ConnectionError):
    code = "bus-lost"


class ScopeFailed(CleatError):
    code = "scope-failed"
    exit_code = 125


class UnitExists(ScopeFailed):
    code = "unit-exists"


class Unsupported(CleatError):
    code = "unsupported"
    exit_code = 125


class PullFailed(CleatError):
    code = "pull-failed"
    exit_code = 125


class ConmonFailed(CleatError):
    code = "conmon-failed"
    exit_code = 125


class ConmonLost(CleatError):
    code = "conmon-lost"
    exit_code = 125


class RuntimeFailed(CleatError):
    code = "runtime-failed"
    exit_code = 125


class CommandNotExecutable(RuntimeFailed, PermissionError):
    code = "permission-denied"
    exit_code = 126


class CommandNotFound(RuntimeFailed, FileNotFoundError):
    code = "not-found"
    exit_code = 127
