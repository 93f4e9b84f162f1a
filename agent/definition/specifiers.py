# SPDX-License-Identifier: Apache-2.0
"""Specifiers in strings: systemd.unit(5), "Specifiers", as far as they mean something for a container."""

from __future__ import annotations

import functools
import os
import platform
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agent.definition.values import InvalidValue
from agent.paths import SYSTEM, Paths

_SPECIFIER = re.compile(r"%(.?)", re.DOTALL)
_ESCAPED = re.compile(r"\\x([0-9a-fA-F]{2})")
_ARCHITECTURES = {"x86_64": "x86-64", "aarch64": "arm64", "i686": "x86", "ppc64le": "ppc64-le", "armv7l": "arm"}

HELP: Mapping[str, str] = {
    "a": "architecture, as systemd spells it (x86-64)",
    "b": "boot ID",
    "C": "root of cache folders (/var/cache)",
    "E": "root of configuration folders (/etc)",
    "h": "home folder of the agent's user",
    "H": "host name",
    "i": "instance: what follows the '@' in the name",
    "I": "instance, with systemd's escapes undone",
    "j": "last part of the prefix, behind its last '-'",
    "l": "host name up to its first dot",
    "L": "root of log folders (/var/log)",
    "m": "machine ID",
    "n": "name of the container",
    "N": "name of the container",
    "o": "ID of the operating system (os-release(5))",
    "p": "prefix: the name up to the '@'",
    "P": "prefix, with systemd's escapes undone",
    "S": "root of state folders (/var/lib)",
    "t": "root of runtime folders (/run)",
    "T": "folder for temporary files (/tmp)",
    "u": "name of the agent's user",
    "U": "number of the agent's user",
    "v": "kernel release",
    "V": "folder for larger temporary files (/var/tmp)",
    "w": "VERSION_ID of the operating system",
    "y": "path of the definition's file",
    "Y": "folder of the definition's file",
    "%": "a percent sign",
}
"""Every specifier with what it stands for."""


class Specifiers:
    """What specifiers stand for in one definition; a fact of the host is looked up when a string needs it."""

    def __init__(self, name: str, source: str, paths: Paths = SYSTEM) -> None:
        prefix, _, instance = name.partition("@")
        self._facts: dict[str, Callable[[], str]] = {
            "a": lambda: _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "b": lambda: _read_id("/proc/sys/kernel/random/boot_id"),
            "C": lambda: _root(paths, "/var/cache", "XDG_CACHE_HOME", ".cache"),
            "E": lambda: os.fspath(paths.config.parent),
            "h": lambda: os.path.expanduser("~"),
            "H": lambda: os.uname().nodename,
            "i": lambda: instance,
            "I": lambda: unescape(instance),
            "j": lambda: prefix.rpartition("-")[2],
            "l": lambda: os.uname().nodename.partition(".")[0],
            "L": lambda: (
                _root(paths, "/var/log", "XDG_STATE_HOME", ".local/state") + ("/log" if paths != SYSTEM else "")
            ),
            "m": lambda: _read_id("/etc/machine-id"),
            "n": lambda: name,
            "N": lambda: name,
            "o": lambda: _os_release("ID"),
            "p": lambda: prefix,
            "P": lambda: unescape(prefix),
            "S": lambda: os.fspath(paths.state.parent),
            "t": lambda: os.fspath(paths.runtime.parent),
            "T": lambda: os.environ.get("TMPDIR", "/tmp"),
            "u": _user_name,
            "U": lambda: str(os.geteuid()),
            "v": platform.release,
            "V": lambda: os.environ.get("TMPDIR", "/var/tmp"),
            "w": lambda: _os_release("VERSION_ID"),
            "y": lambda: source,
            "Y": lambda: os.path.dirname(source),
            "%": lambda: "%",
        }

    def expand(self, text: str) -> str:
        """The text with its specifiers replaced. Raises InvalidValue for one that is not known."""
        return _SPECIFIER.sub(self._replace, text) if "%" in text else text

    def _replace(self, match: re.Match[str]) -> str:
        fact = self._facts.get(match[1])
        if fact is None:
            raise InvalidValue(f'"{match[0]}" is not a specifier', 'write "%%" for a percent sign')
        return fact()

    def expand_all(self, value: Any, path: tuple[str | int, ...], problems: list[tuple[Any, InvalidValue]]) -> Any:
        """A table with all its strings expanded, keys as they are. What is wrong is added to `problems`.

        Left alone is [resources], where a percent sign is one, as in systemd.
        """
        if path == ("resources",):
            return value
        match value:
            case str() if "%" in value:
                try:
                    return self.expand(value)
                except InvalidValue as e:
                    problems.append((path, e))
                    return value
            case dict():
                return {key: self.expand_all(each, (*path, key), problems) for key, each in value.items()}
            case list():
                return [self.expand_all(each, (*path, i), problems) for i, each in enumerate(value)]
            case _:
                return value


def unescape(text: str) -> str:
    """systemd-escape(1) --unescape: "-" is "/", "\\x2d" a character."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text.replace("-", "/"))


def _root(paths: Paths, system: str, variable: str, below_home: str) -> str:
    if paths == SYSTEM:
        return system
    return os.environ.get(variable) or os.path.join(os.path.expanduser("~"), below_home)


def _read_id(path: str) -> str:
    """A 128-bit id as systemd prints it, without hyphens. Raises InvalidValue where the host has none."""
    try:
        return Path(path).read_text().strip().replace("-", "")
    except OSError as e:
        raise InvalidValue(f"{path} cannot be read: {e.strerror}") from e


@functools.cache
def _os_release(field: str) -> str:
    try:
        return platform.freedesktop_os_release().get(field, "")
    except OSError:
        return ""


def _user_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
