# SPDX-License-Identifier: Apache-2.0
"""The benchmark in small: every part of it works, and cleat keeps what does not depend on the machine."""

from __future__ import annotations

import json
import os

import pytest

from tests.bench import bench
from tests.host.machine import cache


def test_quick_run(capsys: pytest.CaptureFixture[str]) -> None:
    with bench.booted(f"pytest-{os.getpid()}") as host:
        result = bench.measure(host, bench.QUICK)
    (cache() / "bench-quick.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    with capsys.disabled():
        print("\n" + bench.table(result))
    start = result["start"]
    assert start["cleat"]["wall_ms"] < start["podman"]["wall_ms"]
    assert start["cleat"]["wall_ms"] < start["quadlet"]["wall_ms"]
    assert result["resident"]["20"]["idle_wakeups"] < bench.QUICK.idle_sec
