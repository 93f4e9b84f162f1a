# SPDX-License-Identifier: Apache-2.0
"""How values are spelled in TOML: one row per kind, with its types, its words, its parser and its JSON schema; pure.

A kind is named by an annotation in definition/model.py. Strings are hostile: what later stands in a file of lines, a
unit name, a path or a mount option is checked here, once, with the bytes that would do harm refused.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from agent.definition import addresses, values, words
from agent.definition.values import InvalidValue, shown

_SIGNAL = {"type": ["string", "integer"]}


class Kind(NamedTuple):
    """`types` are TOML's as Python has them; `parse` gets one of them and raises InvalidValue."""

    types: tuple[type, ...]
    expected: str
    parse: Callable[[Any], Any]
    schema: Mapping[str, Any] = {"type": "string"}


class MapKind(NamedTuple):
    """A table with free keys. Its values are `types`; `parse(key, value)` gives the text or raises InvalidValue."""

    types: tuple[type, ...]
    expected: str
    parse: Callable[[str, Any], str]
    schema: Mapping[str, Any]


def _listen_address(text: str) -> str:
    addresses.parse_listen_address(text)
    return text


def _fifo(text: str) -> str:
    return addresses.parse_fifo(text).path


def _publish(text: str) -> str:
    addresses.parse_publish(text)
    return text


def _boolean(value: bool) -> bool:  # noqa: FBT001 the value itself
    return value


def _number(value: float) -> float:
    return value


_TEXT = (str,)
_TEXT_OR_NUMBER = (str, int)
_ABSOLUTE = {"type": "string", "pattern": "^(/.*)?$"}

KINDS: dict[str, Kind] = {
    "boolean": Kind((bool,), "a boolean (true or false)", _boolean, {"type": "boolean"}),
    "integer": Kind((int,), "an integer", _number, {"type": "integer"}),
    "line": Kind(_TEXT, "a string", words.line),
    "text": Kind(_TEXT, "a string", words.text),
    "time_span": Kind(
        (str, int, float),
        'a time span such as "1min 30s" or a number of seconds',
        values.parse_time_span,
        {"type": ["string", "number"], "minimum": 0},
    ),
    "size": Kind(
        _TEXT_OR_NUMBER,
        'a size such as "512M" or a number of bytes',
        values.parse_size,
        {"type": ["string", "integer"], "minimum": 0},
    ),
    "mode": Kind(
        _TEXT,
        'an access mode such as "0660"',
        values.parse_mode,
        {"type": "string", "pattern": "^[0-7]{1,5}$"},
    ),
    "signal": Kind(_TEXT_OR_NUMBER, 'a signal such as "SIGTERM"', values.parse_signal, _SIGNAL),
    "exit_status": Kind(_TEXT_OR_NUMBER, 'an exit status such as 143 or "SIGTERM"', values.parse_exit_status, _SIGNAL),
    "host_path": Kind(_TEXT, "an absolute path", words.path, _ABSOLUTE),
    "container_path": Kind(_TEXT, "an absolute path inside the container", words.path, _ABSOLUTE),
    "unmasked_path": Kind(_TEXT, 'an absolute path inside the container, or "ALL"', words.unmasked_path),
    "environment_file": Kind(_TEXT, "the path of a file", words.environment_file),
    "name": Kind(_TEXT, "the name of a container", values.check_name),
    "hostname": Kind(_TEXT, "a host name", words.hostname),
    "user": Kind(_TEXT, "the name or number of a user or group", words.user),
    "user_group": Kind(_TEXT, 'a user such as "nginx", "1000" or "nginx:www"', words.user_group),
    "image": Kind(_TEXT, "the reference of an image", words.image),
    "timezone": Kind(_TEXT, 'a time zone such as "Europe/Berlin", or "local"', words.timezone),
    "slice": Kind(_TEXT, "the name of a slice", words.slice_name),
    "network_mode": Kind(_TEXT, "a network mode", words.network_mode),
    "namespace": Kind(_TEXT, '"private", "host" or "container:NAME"', words.namespace),
    "ipc": Kind(_TEXT, '"private", "host", "none" or "container:NAME"', words.ipc),
    "user_namespace": Kind(_TEXT, '"host", "auto" or "map"', words.user_namespace),
    "publish": Kind(_TEXT, 'a port such as "8080:80"', _publish),
    "ip": Kind(_TEXT, "an IP address", addresses.check_ip),
    "ip_prefixes": Kind(_TEXT, "IP addresses or prefixes, separated by spaces", words.ip_prefixes),
    "capability": Kind(_TEXT, 'a capability such as "CAP_NET_ADMIN"', words.capability),
    "id_map": Kind(_TEXT, 'a mapping such as "0:100000:65536"', words.id_map),
    "device": Kind(_TEXT, 'a device such as "/dev/fuse" or "/dev/sda:/dev/xvda:r"', words.device),
    "mount_option": Kind(_TEXT, 'a mount option such as "nosuid"', words.mount_option),
    "seccomp_profile": Kind(_TEXT, '"default", "unconfined" or a path', words.seccomp_profile),
    "listen_address": Kind(_TEXT, 'an address such as "0.0.0.0:8080" or "/run/web.sock"', _listen_address),
    "fifo": Kind(_TEXT, "the absolute path of a fifo", _fifo),
    "fd_name": Kind(_TEXT, "a name", words.fd_name),
    "interface": Kind(_TEXT, "the name of a network interface", words.interface),
    "credential": Kind(_TEXT, "the name of a credential", words.credential),
    "calendar": Kind(_TEXT, 'a calendar expression such as "daily" or "Mon *-*-* 04:00"', words.calendar),
    "runtime": Kind(_TEXT, "the name of a runtime", words.runtime),
    "word": Kind(_TEXT, "a name", words.word),
}

_TABLE = {"type": "object", "additionalProperties": {"type": ["string", "integer"]}}

MAPS: dict[str, MapKind] = {
    "environment": MapKind(_TEXT_OR_NUMBER, "a string", words.variable, _TABLE),
    "text_map": MapKind(_TEXT_OR_NUMBER, "a string", words.label, _TABLE),
    "log_labels": MapKind(_TEXT_OR_NUMBER, "a string", words.journal_field, _TABLE),
    "sysctls": MapKind(_TEXT_OR_NUMBER, "a string", words.sysctl, _TABLE),
    "hosts": MapKind(
        _TEXT,
        "an IP address",
        words.host_entry,
        {"type": "object", "additionalProperties": {"type": "string"}},
    ),
}


def toml_type(value: object) -> str:
    """The TOML name of a value's type, with its article."""
    match value:
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a float"
        case str():
            return "a string"
        case dict():
            return "a table"
        case list():
            return "an array"
        case _:
            return "a date or time"


def rewrite_hint(value: object, *, wants_list: bool) -> str:
    """How the value given would be written as what is expected, where that can be told."""
    if wants_list and isinstance(value, str):
        try:
            parts = shlex.split(value)
        except ValueError:
            parts = [value]
        return "write [" + ", ".join(shown(part) for part in parts[:8]) + "]" if len(parts) <= 8 else ""
    if isinstance(value, (bool, int, float)) and not wants_list:
        return f'write "{shown(value)}"'
    return ""


def has_type(value: object, types: tuple[type, ...]) -> bool:
    """isinstance, but true and false are only booleans."""
    return isinstance(value, types) and (not isinstance(value, bool) or bool in types)


def pattern(expression: str, what: str, hint: str) -> Callable[[str], str]:
    """A check by one regular expression."""
    compiled = re.compile(expression, re.ASCII)

    def check(text: str) -> str:
        if compiled.fullmatch(text) is None:
            raise InvalidValue(f"{shown(text)} is not {what}", hint)
        return text

    return check
