# SPDX-License-Identifier: Apache-2.0
"""[resources]: text of a definition to properties of a scope."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from agent.definition import limits
from agent.definition.limits import RLIM_INFINITY, parse_limit
from agent.definition.model import Container, Resources
from agent.definition.parse import Problems, read_table
from agent.definition.resources import (
    INFINITY,
    ROWS,
    Property,
    changed_properties,
    needed_controllers,
    scope_properties,
)
from agent.definition.values import InvalidValue

SCALE = 2**32 - 1


def read(**table: Any) -> Resources:
    problems = Problems()
    container = read_table(Container, {"resources": table}, problems, name="x")
    assert not problems, [str(problem) for problem in problems]
    return container.resources


def properties(**table: Any) -> list[tuple[str, str, Any]]:
    return [tuple(found) for found in scope_properties(read(**table))]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("memory_max", "512M", ("MemoryMax", "t", 512 << 20)),
        ("memory_max", 4096, ("MemoryMax", "t", 4096)),
        ("memory_max", "infinity", ("MemoryMax", "t", INFINITY)),
        ("memory_max", "50%", ("MemoryMaxScale", "u", 2147483648)),
        ("memory_min", "12.5%", ("MemoryMinScale", "u", 536870912)),
        ("memory_high", "100%", ("MemoryHighScale", "u", SCALE)),
        ("memory_swap_max", "0", ("MemorySwapMax", "t", 0)),
        ("memory_zswap_max", "1M", ("MemoryZSwapMax", "t", 1 << 20)),
        ("memory_accounting", True, ("MemoryAccounting", "b", True)),
        ("cpu_weight", 200, ("CPUWeight", "t", 200)),
        ("cpu_weight", "idle", ("CPUWeight", "t", 0)),
        ("cpu_quota", "50%", ("CPUQuotaPerSecUSec", "t", 500_000)),
        ("cpu_quota", "250%", ("CPUQuotaPerSecUSec", "t", 2_500_000)),
        ("cpu_quota", "infinity", ("CPUQuotaPerSecUSec", "t", INFINITY)),
        ("cpu_quota_period_sec", "10ms", ("CPUQuotaPeriodUSec", "t", 10_000)),
        ("allowed_cpus", "0-3 8", ("AllowedCPUs", "ay", b"\x0f\x01")),
        ("allowed_cpus", 1, ("AllowedCPUs", "ay", b"\x02")),
        ("allowed_memory_nodes", "0,1", ("AllowedMemoryNodes", "ay", b"\x03")),
        ("tasks_max", 200, ("TasksMax", "t", 200)),
        ("tasks_max", "10%", ("TasksMaxScale", "u", 429496730)),
        ("tasks_max", "infinity", ("TasksMax", "t", INFINITY)),
        ("io_weight", "500", ("IOWeight", "t", 500)),
        ("io_device_weight", "/dev/sda 50", ("IODeviceWeight", "a(st)", [["/dev/sda", 50]])),
        (
            "io_read_bandwidth_max",
            ["/dev/sda 10M", "/dev/sdb infinity"],
            ("IOReadBandwidthMax", "a(st)", [["/dev/sda", 10_000_000], ["/dev/sdb", INFINITY]]),
        ),
        ("io_write_iops_max", "/dev/sda 1K", ("IOWriteIOPSMax", "a(st)", [["/dev/sda", 1000]])),
        (
            "io_device_latency_target_sec",
            "/dev/sda 25ms",
            ("IODeviceLatencyTargetUSec", "a(st)", [["/dev/sda", 25_000]]),
        ),
        ("ip_accounting", False, ("IPAccounting", "b", False)),
        (
            "ip_address_allow",
            ["10.0.0.0/8", "::1"],
            (
                "IPAddressAllow",
                "a(iayu)",
                [
                    [int(socket.AF_INET), bytes([10, 0, 0, 0]), 8],
                    [int(socket.AF_INET6), bytes(15) + b"\x01", 128],
                ],
            ),
        ),
        (
            "ip_address_deny",
            "any",
            ("IPAddressDeny", "a(iayu)", [[int(socket.AF_INET), bytes(4), 0], [int(socket.AF_INET6), bytes(16), 0]]),
        ),
        ("managed_oom_swap", "kill", ("ManagedOOMSwap", "s", "kill")),
        ("managed_oom_memory_pressure_limit", "60%", ("ManagedOOMMemoryPressureLimit", "u", 2576980377)),
        ("managed_oom_preference", "avoid", ("ManagedOOMPreference", "s", "avoid")),
    ],
)
def test_property(key: str, value: Any, expected: tuple[str, str, Any]) -> None:
    assert properties(**{key: value}) == [expected]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("memory_max", "512MB"),
        ("memory_max", "101%"),
        ("memory_max", True),
        ("cpu_weight", 0),
        ("cpu_weight", 10001),
        ("cpu_quota", "0%"),
        ("cpu_quota", 50),
        ("cpu_quota_period_sec", "2s"),
        ("allowed_cpus", "3-1"),
        ("allowed_cpus", "a"),
        ("allowed_cpus", "99999"),
        ("tasks_max", 0),
        ("io_device_weight", "sda 50"),
        ("io_device_weight", "/dev/sda"),
        ("io_read_bandwidth_max", ["/dev/sda 10M\n/dev/sdb 1"]),
        ("ip_address_allow", "10.0.0.0/33"),
        ("managed_oom_swap", "maybe"),
        ("limit_nofile", "a"),
        ("limit_nofile", "10:5"),
        ("oom_score_adjust", -1001),
        ("oom_score_adjust", "1"),
        ("limit_what", 1),
        ("device_policy", "auto"),
    ],
)
def test_refused(key: str, value: Any) -> None:
    problems = Problems()
    read_table(Container, {"resources": {key: value}}, problems, name="x")
    assert [problem.path[:2] for problem in problems] == [("resources", key)]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("nofile", "1024:4096", (1024, 4096)),
        ("nofile", 1024, (1024, 1024)),
        ("nofile", "infinity", (RLIM_INFINITY, RLIM_INFINITY)),
        ("nofile", "10:infinity", (10, RLIM_INFINITY)),
        ("core", "1G", (1 << 30, 1 << 30)),
        ("cpu", "1min", (60, 60)),
        ("cpu", "1500ms", (2, 2)),
        ("rttime", "100", (100, 100)),
        ("rttime", "1s", (1_000_000, 1_000_000)),
    ],
)
def test_limit(name: str, value: str | int, expected: tuple[int, int]) -> None:
    assert parse_limit(name, value) == expected


def test_soft_limit_without_end_needs_such_a_hard_one() -> None:
    with pytest.raises(InvalidValue):
        parse_limit("nofile", "infinity:10")


def test_every_limit_of_the_kernel_is_known() -> None:
    import resource

    known = {name.removeprefix("RLIMIT_").lower() for name in dir(resource) if name.startswith("RLIMIT_")}
    assert known - {"ofile"} <= set(limits.LIMITS)


def test_needed_controllers() -> None:
    assert needed_controllers(read(memory_max="1G", cpu_quota="5%", allowed_cpus="0", tasks_max=5, io_weight=5)) == {
        "memory",
        "cpu",
        "cpuset",
        "pids",
        "io",
    }
    assert needed_controllers(read(ip_accounting=True, limit_nofile=5)) == frozenset()


def test_changes_reset_what_is_gone() -> None:
    old = read(memory_max="1G", cpu_weight=5, memory_min="1M")
    new = read(memory_max="2G", tasks_max=7)
    assert set(changed_properties(old, new)) == {
        Property("MemoryMin", "t", 0),
        Property("MemoryMax", "t", 2 << 30),
        Property("CPUWeight", "t", INFINITY),
        Property("TasksMax", "t", 7),
    }
    assert changed_properties(new, new) == ()


def test_change_of_a_share_to_a_size() -> None:
    changes = changed_properties(read(memory_max="50%"), read(memory_max="1G"))
    assert changes == (Property("MemoryMax", "t", 1 << 30),)
    assert changed_properties(read(memory_max="50%"), read()) == (Property("MemoryMax", "t", INFINITY),)


def test_accounting_goes_back_to_what_systemd_does_by_itself() -> None:
    old = read(memory_accounting=False, tasks_accounting=False, cpu_accounting=False, io_accounting=True)
    assert {found.name: found.value for found in changed_properties(old, read())} == {
        "MemoryAccounting": True,
        "TasksAccounting": True,
        "CPUAccounting": True,
        "IOAccounting": False,
    }


def test_lists_are_emptied_before_they_are_set() -> None:
    changes = changed_properties(read(io_device_weight="/dev/sda 5"), read(io_device_weight="/dev/sdb 5"))
    assert changes == (
        Property("IODeviceWeight", "a(st)", []),
        Property("IODeviceWeight", "a(st)", [["/dev/sdb", 5]]),
    )


def test_rows_are_named_after_systemd() -> None:
    for key, row in ROWS.items():
        stem = key.removesuffix("_sec").replace("_", "")
        assert row.property.lower().startswith(stem), key
