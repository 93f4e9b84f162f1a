# SPDX-License-Identifier: Apache-2.0
"""What runtimes say when they fail, and what that means: one table for crun and runc, start and exec.

Texts were collected from crun 1.21 and runc 1.1.15. A log or stderr holds several lines, as JSON, logfmt or
plain text, warnings among them; one line says it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from agent.errors import (
    CleatError,
    CommandNotExecutable,
    CommandNotFound,
    InvalidState,
    RuntimeFailed,
    Unsupported,
)

_LOG_LIMIT = 1 << 20
_TEXT_LIMIT = 1000
_LOGFMT = re.compile(r'time="[^"]*" level=(?P<level>\w+) msg=(?P<msg>"(?:[^"\\]|\\.)*"|\S+)')
_SEVERE = ("error", "fatal", "panic")


class _Row(msgspec.Struct, frozen=True):
    """A pattern, what it means (None = as the text sounds), the definition's key, and what to do."""

    pattern: str
    error: type[CleatError] | None = None
    key: str = ""
    hint: str = ""


class _Entry(msgspec.Struct, frozen=True):
    """One line of a --log-format=json log."""

    level: str = ""
    msg: str = ""


# The first match counts; without one, the text's own "not found" or "permission denied" decides, as podman's
# does.
_TABLE = (
    _Row(
        r"container does not exist|opening file `[^`]*/status`|cannot open directory `[^`]*`: no such file",
        InvalidState,
        hint="it is not running",
    ),
    _Row(
        r"container (`[^`]*` is )?not running|container that has stopped|process already finished|no such process",
        InvalidState,
        hint="it has ended",
    ),
    _Row(r"cannot (pause|resume) a container|container (is )?not paused", InvalidState),
    _Row(
        r"missing dynamic library",
        CommandNotFound,
        "command",
        "its interpreter or dynamic loader is not in the root file system",
    ),
    _Row(
        r'executable file .*not found|exec: "[^"]*": stat .*no such file|exec [^ ]*: no such',
        CommandNotFound,
        "command",
        "give its path inside the container, or install it in the image",
    ),
    _Row(
        r"exec format error",
        CommandNotExecutable,
        "command",
        "it is built for another architecture, or a script without #! line",
    ),
    _Row(
        r'exists but it is not exec|path `[^`]*` is not a regular file|exec: "[^"]*": (permission|is a dir)',
        CommandNotExecutable,
        "command",
        "it must be a file that the container's user may execute",
    ),
    _Row(
        r"chdir to|\bcwd\b",
        None,
        "working_directory",
        "the folder must exist in the container, and its user be allowed to enter it",
    ),
    _Row(
        r"controller `[^`]*` is not available|/(pids|memory|cpu|cpuset|io|hugetlb)\.[a-z.]+: no such",
        Unsupported,
        "resources",
        "this host does not delegate that cgroup controller",
    ),
    _Row(
        r'mounting "sysfs"|mount `sysfs`',
        Unsupported,
        "network.mode",
        "a user namespace needs a network namespace of its own for /sys",
    ),
    _Row(
        r"cannot stat `|bind mount source stat",
        RuntimeFailed,
        "mount",
        "the source of a mount must exist on the host",
    ),
    _Row(
        r"mount `|error mounting|mount destination",
        RuntimeFailed,
        "mount",
        "look at type, target and options",
    ),
    _Row(
        r"apparmor",
        Unsupported,
        "security.apparmor_profile",
        "load the profile with apparmor_parser, or remove the key",
    ),
    _Row(
        r"selinux|/proc/(self|thread-self|\d+)/attr/",
        Unsupported,
        "security.selinux_type",
        "SELinux is not enabled on this host, or does not know the label",
    ),
    _Row(r"seccomp", RuntimeFailed, "security.seccomp_profile", "look at the profile"),
    _Row(
        r"oom_score_adj",
        RuntimeFailed,
        "resources.oom_score_adjust",
        "it goes from -1000 to 1000; going lower than the agent's own needs CAP_SYS_RESOURCE",
    ),
    _Row(r"rlimit", RuntimeFailed, "resources", "raising a limit above the agent's own needs CAP_SYS_RESOURCE"),
    _Row(
        r"/proc/sys/|sysctl",
        RuntimeFailed,
        "security.sysctls",
        "the kernel has no such parameter, or refuses it",
    ),
    _Row(r"namespace path|/netns/|/proc/\d+/ns/", RuntimeFailed, hint="the namespace to join is gone"),
    _Row(r"criu", RuntimeFailed, hint="the work folder's dump.log or restore.log says more"),
    _Row(
        r"unrecognized option|flag provided but not defined|unknown option|incorrect usage",
        Unsupported,
        "runtime",
        "the runtime is too old for this, or runtime.args is wrong",
    ),
)


def error_from_text(
    text: str, container: str = "", *, what: str = "the container runtime failed", exit_code: int = 0
) -> CleatError:
    """What a runtime's log or stderr means, in its own words, cut to one line that can be shown.

    `exit_code` is only told when there are no words at all.
    """
    line = relevant_line(text)
    if not line:
        why = f"it ended with exit code {exit_code} and said nothing" if exit_code else "it gave no reason"
        return RuntimeFailed(what, container=container, why=why)
    row = next((row for row in _TABLE if re.search(row.pattern, line, re.IGNORECASE)), _Row(""))
    kind = row.error or _as_it_sounds(line)
    return kind(what, container=container, key=row.key, why=line, hint=row.hint)


def _as_it_sounds(line: str) -> type[CleatError]:
    lower = line.lower()
    if "permission denied" in lower or "operation not permitted" in lower:
        return CommandNotExecutable
    return CommandNotFound if "no such file or directory" in lower else RuntimeFailed


def read_oci_log(path: str | Path) -> str | None:
    """The message that ended a runtime, from its --log file; None without one. Looks at 1 MiB at most."""
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _LOG_LIMIT))
            data = file.read(_LOG_LIMIT)
    except OSError:
        return None
    return _chosen(_messages(data.decode(errors="replace")))


def relevant_line(text: str) -> str:
    """The line that says why: the last error; of plain text the first that the table knows, or the last."""
    chosen = _chosen(_messages(text))
    if chosen:
        return chosen
    plain = [_clean(line) for line in text.splitlines() if line.strip() and not _is_structured(line)]
    known = (line for line in plain if any(re.search(row.pattern, line, re.IGNORECASE) for row in _TABLE))
    return next(known, plain[-1] if plain else "")


def _chosen(messages: Iterable[tuple[str, str]]) -> str | None:
    """The last fatal message (runc's first stage), else the last error: its consequences stand behind it."""
    found = dict(messages)
    return found.get("fatal") or found.get("panic") or found.get("error")


def _messages(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        level, message = _parse(line)
        if level in _SEVERE and message:
            yield level, message


def _parse(line: str) -> tuple[str, str]:
    """(level, message) of a JSON or logfmt line, both "" for plain text."""
    stripped = line.strip()
    if stripped.startswith("{"):
        try:
            entry = msgspec.json.decode(stripped, type=_Entry)
        except (msgspec.DecodeError, UnicodeError):
            return "", ""
        return entry.level, _clean(entry.msg)
    match = _LOGFMT.match(stripped)
    return (match["level"], _clean(_unquoted(match["msg"]))) if match else ("", "")


def _is_structured(line: str) -> bool:
    return bool(_parse(line)[0])


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text


def _clean(text: str) -> str:
    printable = "".join(c if c.isprintable() else " " for c in text.strip())
    return printable if len(printable) <= _TEXT_LIMIT else printable[:_TEXT_LIMIT] + "…"
