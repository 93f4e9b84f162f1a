# SPDX-License-Identifier: Apache-2.0
"""What this host gives or takes, for every container alike: paths to hide."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def thermal_throttle_paths() -> tuple[str, ...]:
    """Counters of the processors' heat, a side channel on the neighbours; one folder for each processor."""
    found = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle")
    return tuple(sorted(map(str, found)))
