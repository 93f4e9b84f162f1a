# SPDX-License-Identifier: Apache-2.0
"""What both kinds of test hosts stand on: processes that are told apart, the cache folder, the error."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

CLEAN_ENVIRONMENT = (
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "USER=root",
    "SHELL=/bin/bash",
    "LANG=C.UTF-8",
    "TERM=dumb",
)


class HostError(Exception):
    """A host could not be booted, entered or stopped; the text says which, why, and where its console is."""


@dataclass(frozen=True)
class Process:
    """A process that is still the same one: its pid and its start time (field 22 of proc_pid_stat(5))."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> Process:
        return cls(pid, start_time(pid))

    def alive(self) -> bool:
        try:
            return start_time(self.pid) == self.start
        except OSError:
            return False

    def wait(self, timeout_sec: float) -> bool:
        """True once it has ended."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        with os.fdopen(fd):
            return not self.alive() or bool(select.select([fd], [], [], timeout_sec)[0])

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(self.pid)
            with os.fdopen(fd):
                if self.alive():
                    signal.pidfd_send_signal(fd, signal.SIGKILL)


def start_time(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    fields = stat.rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return int(fields[19])


def cache() -> Path:
    return Path(os.environ.get("CLEAT_TEST_CACHE", "/var/cache/cleat-tests"))


def readable_or_ended(source: socket.socket, pid: int, timeout_sec: float) -> bool:
    """Waits for something to read, the end of the process or of the time; False if it has ended."""
    try:
        ended = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        readable, _, _ = select.select([source.fileno(), ended], [], [], timeout_sec)
    finally:
        os.close(ended)
    return ended not in readable


def tail(path: Path, lines: int = 40) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    return ""


def run_tool(argv: list[str], environment: dict[str, str] | None = None) -> None:
    """Runs a tool of the machine's to its end. Raises HostError with what it said if it fails."""
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        check=False,
    )
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip()
        raise HostError(f"{argv[0]} failed with status {done.returncode}: {said}")
