# SPDX-License-Identifier: Apache-2.0
"""What this host gives or takes, for every container alike: capabilities, paths to hide."""

from __future__ import annotations

import functools
from pathlib import Path

from agent.oci import capabilities


@functools.cache
def bounding_capabilities() -> frozenset[str]:
    """This process's bounding set: nothing that it starts can have more (proc_pid_status(5))."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            return capabilities.from_mask(int(line.split()[1], 16))
    return frozenset(capabilities.KNOWN)


@functools.cache
def thermal_throttle_paths() -> tuple[str, ...]:
    """Counters of the processors' heat, a side channel on the neighbours; one folder for each processor."""
    found = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle")
    return tuple(sorted(map(str, found)))
