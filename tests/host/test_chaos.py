# SPDX-License-Identifier: Apache-2.0
"""All that can be done to containers, at once and in any order: nothing hangs, nothing is left, no fault is told."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.host import samples
from tests.host.nspawn import HERE

if TYPE_CHECKING:
    from tests.host.hosts import Host


@pytest.mark.parametrize("how", ["safe", "deadly"])
def test_nothing_is_left_of_it(clean: Host, how: str) -> None:
    clean.rootfs("base")
    script = (HERE / "chaos.py").read_text(encoding="utf-8")
    done = clean.run(["python3", "-", "1", "300", how], stdin=script, timeout=300)
    assert json.loads(done.stdout) == []
    # The agent may have been killed too often in a row.
    clean.run("systemctl reset-failed; systemctl start cleat.service", timeout=90)
    clean.run("rm -f /etc/cleat/containers/*.toml")
    clean.cleat("reload-agent", timeout=90)
    assert clean.status() == []
    assert samples.faults(clean) == []
