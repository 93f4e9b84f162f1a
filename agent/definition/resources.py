# SPDX-License-Identifier: Apache-2.0
"""The limits of a scope in [resources]: one row per key, from its text to the property of a scope; pure.

Keys are systemd.resource-control(5)'s in snake case; limits.py has those of systemd.exec(5). Properties are what
StartTransientUnit takes for them (org.freedesktop.systemd1(5)), built as systemctl(1) set-property builds them:
percentages of the host become the ...Scale properties, fractions of 2^32 - 1.
"""

from __future__ import annotations

import ipaddress
import math
import re
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from agent.definition import values, words
from agent.definition.model import Resources
from agent.definition.values import InvalidValue, nearest_hint, shown

INFINITY = 2**64 - 1
_SCALE = 2**32 - 1
_USEC = 1_000_000


class Property(NamedTuple):
    """As StartTransientUnit and SetUnitProperties take it."""

    name: str
    signature: str
    value: Any


class Row(NamedTuple):
    """A key of [resources]. `parse` checks one TOML value (an item, for lists) and gives its normalised text.

    `properties` turns that text (for lists the lines of it) into scope properties; `unset` is the value that means
    "as if never set". `controller` is the cgroup controller without which the kernel does nothing, "" for none.
    """

    key: str
    property: str
    controller: str
    types: tuple[type, ...]
    expected: str
    parse: Callable[[Any], str]
    properties: Callable[[str, str], tuple[Property, ...]]
    unset: tuple[Property, ...]
    is_list: bool = False


# Text of one value

_PERCENT = re.compile(r"([0-9]{1,6})(?:\.([0-9]{1,2}))?\s*%", re.ASCII)


def _permyriad(text: str) -> int | None:
    """Hundredths of a percent of "12.5%", None for what is no percentage."""
    found = _PERCENT.fullmatch(text.strip())
    return int(found[1]) * 100 + int((found[2] or "0").ljust(2, "0")) if found else None


def _share(value: str) -> int | None:
    permyriad = _permyriad(value)
    if permyriad is not None and permyriad > 10_000:
        raise InvalidValue(f"{shown(value)} is more than all", "write at most 100%")
    return permyriad


def _memory(value: str | int) -> str:
    if isinstance(value, str) and (value == "infinity" or _share(value) is not None):
        return value
    return str(values.parse_size(value))


def _tasks(value: str | int) -> str:
    if value == "infinity" or (isinstance(value, str) and _share(value) is not None):
        return str(value)
    return whole_number(value, 1, 2**63 - 1)


def whole_number(value: str | int, low: int, high: int) -> str:
    text = str(value).strip()
    if not re.fullmatch(r"[0-9]{1,20}", text, re.ASCII) or not low <= int(text) <= high:
        raise InvalidValue(f"{shown(value)} is not a number from {low} to {high}")
    return str(int(text))


def _weight(value: str | int) -> str:
    return whole_number(value, 1, 10_000)


def _cpu_weight(value: str | int) -> str:
    return "idle" if value == "idle" else _weight(value)


def _quota(value: str | float) -> str:
    if value == "infinity":
        return "infinity"
    if not isinstance(value, str):
        raise InvalidValue(f"{value} is not a share of CPU time", f'write "{value}%", or "200%" for two CPUs')
    if not _permyriad(value):
        raise InvalidValue(f"{shown(value)} is not a share of CPU time", 'write "50%", or "200%" for two CPUs')
    return value.strip()


def _period(value: str | float) -> str:
    seconds = values.parse_time_span(value)
    if not (math.isinf(seconds) or 0.001 <= seconds <= 1):
        raise InvalidValue(f"{shown(value)} is not a period for a quota", "it is from 1ms to 1s")
    return values.format_time_span(seconds)


def _index_set(value: str | int) -> str:
    """Numbers and ranges, "0-3 6", as in systemd's CPU sets."""
    if not _indices(str(value)):
        raise InvalidValue(f"{shown(value)} names no CPU or node", 'write for example "0-3" or "0 2 4"')
    return " ".join(re.split(r"[\s,]+", str(value).strip(" ,\t")))


def _indices(text: str) -> set[int]:
    found: set[int] = set()
    for part in re.split(r"[\s,]+", text.strip(" ,\t")):
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < 8192:
            raise InvalidValue(f"{shown(part)} is not a number or range", 'write for example "0-3"')
        found.update(range(first, last + 1))
    return found


def _device_and(value: str, parse: Callable[[str], str]) -> str:
    device, _, rest = words.line(value).strip().partition(" ")
    if not device.startswith("/") or not rest.strip() or ".." in device.split("/"):
        raise InvalidValue(f"{shown(value)} is not a device and a value", 'write for example "/dev/sda 10M"')
    return f"{device} {parse(rest.strip())}"


def _device_weight(value: str) -> str:
    return _device_and(value, _weight)


def _rate(value: str) -> str:
    return _device_and(value, lambda text: text if text == "infinity" else str(values.parse_size(text, base=1000)))


def _latency(value: str) -> str:
    return _device_and(value, lambda text: values.format_time_span(values.parse_time_span(text)))


def _boolean(value: bool) -> str:  # noqa: FBT001 the value itself
    return "yes" if value else "no"


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in choices:
            hint = nearest_hint(value, choices) or f"write one of {', '.join(choices)}"
            raise InvalidValue(f"{shown(value)} is not known here", hint)
        return value

    return parse


def _percentage(value: str) -> str:
    if _share(value) is None:
        raise InvalidValue(f"{shown(value)} is not a percentage", 'write for example "60%"')
    return value.strip()


# Properties of one text


def _scale(permyriad: int) -> int:
    return (permyriad * _SCALE + 5_000) // 10_000


def _amount(name: str, text: str) -> tuple[Property, ...]:
    permyriad = _permyriad(text)
    if permyriad is not None:
        return (Property(f"{name}Scale", "u", _scale(permyriad)),)
    return (Property(name, "t", INFINITY if text == "infinity" else int(text)),)


def _number(name: str, text: str) -> tuple[Property, ...]:
    return (Property(name, "t", 0 if text == "idle" else int(text)),)


def _per_second(name: str, text: str) -> tuple[Property, ...]:
    return (Property(name, "t", INFINITY if text == "infinity" else (_permyriad(text) or 0) * _USEC // 10_000),)


def _microseconds(name: str, text: str) -> tuple[Property, ...]:
    return (Property(name, "t", to_usec(text)),)


def to_usec(text: str) -> int:
    seconds = values.parse_time_span(text)
    return INFINITY if math.isinf(seconds) else round(seconds * _USEC)


def _bit_mask(name: str, text: str) -> tuple[Property, ...]:
    """A little-endian bit mask in bytes."""
    indices = _indices(text)
    mask = sum(1 << index for index in indices)
    return (Property(name, "ay", mask.to_bytes(max(indices) // 8 + 1, "little")),)


def _device_numbers(name: str, text: str) -> tuple[Property, ...]:
    pairs = [entry.split(" ", 1) for entry in text.splitlines()]
    return (Property(name, "a(st)", [[path, INFINITY if n == "infinity" else int(n)] for path, n in pairs]),)


def _device_times(name: str, text: str) -> tuple[Property, ...]:
    pairs = [entry.split(" ", 1) for entry in text.splitlines()]
    return (Property(name, "a(st)", [[path, to_usec(span)] for path, span in pairs]),)


def _flag(name: str, text: str) -> tuple[Property, ...]:
    return (Property(name, "b", text == "yes"),)


def _string(name: str, text: str) -> tuple[Property, ...]:
    return (Property(name, "s", text),)


def _fraction(name: str, text: str) -> tuple[Property, ...]:
    return (Property(name, "u", _scale(_permyriad(text) or 0)),)


_SYMBOLIC = {
    "any": ("0.0.0.0/0", "::/0"),
    "localhost": ("127.0.0.0/8", "::1/128"),
    "link-local": ("169.254.0.0/16", "fe80::/64"),
    "multicast": ("224.0.0.0/4", "ff00::/8"),
}


def _addresses(name: str, text: str) -> tuple[Property, ...]:
    entries = [part for word in text.split() for part in _SYMBOLIC.get(word, (word,))]
    networks = [ipaddress.ip_network(entry, strict=False) for entry in entries]
    rows = [
        [
            socket.AF_INET if network.version == 4 else socket.AF_INET6,
            network.network_address.packed,
            network.prefixlen,
        ]
        for network in networks
    ]
    return (Property(name, "a(iayu)", rows),)


# The rows


def _row(
    key: str,
    name: str,
    controller: str,
    expected: str,
    parse: Callable[[Any], str],
    properties: Callable[[str, str], tuple[Property, ...]],
    unset: tuple[str, Any],
    types: tuple[type, ...] = (str, int),
    is_list: bool = False,  # noqa: FBT001, FBT002 a column of the table below
) -> Row:
    return Row(key, name, controller, types, expected, parse, properties, (Property(name, *unset),), is_list)


def _memory_row(key: str, name: str, unset: int = INFINITY) -> Row:
    return _row(key, name, "memory", 'a size, a percentage or "infinity"', _memory, _amount, ("t", unset))


def _weight_row(key: str, name: str, controller: str) -> Row:
    parse = _cpu_weight if controller == "cpu" else _weight
    return _row(key, name, controller, "a weight from 1 to 10000", parse, _number, ("t", INFINITY))


def _set_row(key: str, name: str) -> Row:
    return _row(key, name, "cpuset", 'numbers and ranges such as "0-3"', _index_set, _bit_mask, ("ay", b""))


def _device_row(key: str, name: str, parse: Callable[[Any], str], to: Any = _device_numbers) -> Row:
    return _row(key, name, "io", "a device and a value", parse, to, ("a(st)", []), (str,), is_list=True)


def _flag_row(key: str, name: str, controller: str = "", *, unset: bool = False) -> Row:
    return _row(key, name, controller, "a boolean", _boolean, _flag, ("b", unset), (bool,))


def _prefix_row(key: str, name: str) -> Row:
    expected = "IP addresses or prefixes"
    return _row(key, name, "", expected, words.ip_prefixes, _addresses, ("a(iayu)", []), (str,), is_list=True)


def _word_row(key: str, name: str, *choices: str) -> Row:
    expected = " or ".join(f'"{choice}"' for choice in choices)
    return _row(key, name, "", expected, _choice(*choices), _string, ("s", choices[0]), (str,))


ROWS: dict[str, Row] = {
    row.key: row
    for row in (
        _memory_row("memory_min", "MemoryMin", 0),
        _memory_row("memory_low", "MemoryLow", 0),
        _memory_row("memory_high", "MemoryHigh"),
        _memory_row("memory_max", "MemoryMax"),
        _memory_row("memory_swap_max", "MemorySwapMax"),
        _memory_row("memory_zswap_max", "MemoryZSwapMax"),
        _flag_row("memory_accounting", "MemoryAccounting", "memory", unset=True),
        _weight_row("cpu_weight", "CPUWeight", "cpu"),
        _weight_row("startup_cpu_weight", "StartupCPUWeight", "cpu"),
        _row(
            "cpu_quota",
            "CPUQuotaPerSecUSec",
            "cpu",
            "a percentage of one CPU",
            _quota,
            _per_second,
            ("t", INFINITY),
            (str, int, float),
        ),
        _row(
            "cpu_quota_period_sec",
            "CPUQuotaPeriodUSec",
            "cpu",
            "a time span from 1ms to 1s",
            _period,
            _microseconds,
            ("t", INFINITY),
            (str, int, float),
        ),
        _flag_row("cpu_accounting", "CPUAccounting", unset=True),
        _set_row("allowed_cpus", "AllowedCPUs"),
        _set_row("startup_allowed_cpus", "StartupAllowedCPUs"),
        _set_row("allowed_memory_nodes", "AllowedMemoryNodes"),
        _set_row("startup_allowed_memory_nodes", "StartupAllowedMemoryNodes"),
        _row("tasks_max", "TasksMax", "pids", 'a number, a percentage or "infinity"', _tasks, _amount, ("t", INFINITY)),
        _flag_row("tasks_accounting", "TasksAccounting", "pids", unset=True),
        _weight_row("io_weight", "IOWeight", "io"),
        _weight_row("startup_io_weight", "StartupIOWeight", "io"),
        _device_row("io_device_weight", "IODeviceWeight", _device_weight),
        _device_row("io_read_bandwidth_max", "IOReadBandwidthMax", _rate),
        _device_row("io_write_bandwidth_max", "IOWriteBandwidthMax", _rate),
        _device_row("io_read_iops_max", "IOReadIOPSMax", _rate),
        _device_row("io_write_iops_max", "IOWriteIOPSMax", _rate),
        _device_row("io_device_latency_target_sec", "IODeviceLatencyTargetUSec", _latency, _device_times),
        _flag_row("io_accounting", "IOAccounting", "io"),
        _flag_row("ip_accounting", "IPAccounting"),
        _prefix_row("ip_address_allow", "IPAddressAllow"),
        _prefix_row("ip_address_deny", "IPAddressDeny"),
        _word_row("managed_oom_swap", "ManagedOOMSwap", "auto", "kill"),
        _word_row("managed_oom_memory_pressure", "ManagedOOMMemoryPressure", "auto", "kill"),
        _row(
            "managed_oom_memory_pressure_limit",
            "ManagedOOMMemoryPressureLimit",
            "",
            "a percentage",
            _percentage,
            _fraction,
            ("u", 0),
            (str,),
        ),
        _word_row("managed_oom_preference", "ManagedOOMPreference", "none", "avoid", "omit"),
    )
}


def scope_properties(resources: Resources) -> tuple[Property, ...]:
    """The properties of a scope with these limits, in the order of the rows."""
    return tuple(
        found
        for key, row in ROWS.items()
        if key in resources.properties
        for found in row.properties(row.property, resources.properties[key])
    )


def changed_properties(old: Resources, new: Resources) -> tuple[Property, ...]:
    """What turns a running scope with limits `old` into one with `new`; keys no longer set go back to the default.

    Lists of devices and addresses are emptied first, because systemd adds to them.
    """
    found: list[Property] = []
    for key, row in ROWS.items():
        before, after = old.properties.get(key), new.properties.get(key)
        if before == after:
            continue
        if after is None or (row.is_list and before is not None):
            found += row.unset
        if after is not None:
            found += row.properties(row.property, after)
    return tuple(found)


def needed_controllers(resources: Resources) -> frozenset[str]:
    """The cgroup controllers that must be there for all of it to work."""
    return frozenset(ROWS[key].controller for key in resources.properties if key in ROWS) - {""}
