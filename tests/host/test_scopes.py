# SPDX-License-Identifier: Apache-2.0
"""cleat-NAME.scope: what it says, and that many starts, stops and crashes leave nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.host.test_handles import DEAF, SERVE, define

if TYPE_CHECKING:
    from tests.host.hosts import Host

ROUNDS = int(os.environ.get("CLEAT_TEST_ROUNDS", "200"))
"""Starts in all; 1000 for a long run."""


def test_what_it_says(clean: Host) -> None:
    keys = 'description = "Shop front"\nafter = ["db"]'
    define(clean, "web", keys=keys, service='timeout_stop_sec = "7s"\nkill_signal = "SIGQUIT"')
    define(clean, "db")
    clean.reload()
    clean.cleat("start", "db", "web")
    names = "Description,Documentation,KillSignal,TimeoutStopUSec,Slice,Delegate,After,Conflicts,CollectMode"
    found = clean.unit("cleat-web.scope", names)
    assert found["Description"] == "Container web: Shop front"
    assert "man:cleat" in found["Documentation"]
    assert (found["KillSignal"], found["TimeoutStopUSec"]) == ("3", "22s")
    assert (found["Slice"], found["Delegate"], found["CollectMode"]) == ("cleat.slice", "yes", "inactive-or-failed")
    assert {"cleat-containers.target", "cleat-after@db.target"} <= set(found["After"].split())
    assert "shutdown.target" in found["Conflicts"]
    tree = clean.run(["systemd-cgls", "--no-pager", "-u", "cleat-web.scope"]).stdout
    assert "supervisor" in tree
    assert "container" in tree
    assert "cleat-web.scope" in clean.run(["systemd-cgtop", "-b", "-n", "1", "-P", "--depth=3"]).stdout
    clean.run(["systemctl", "kill", "--signal=KILL", "cleat-web.scope"])
    clean.wait_event("web", "lost")


def test_many_starts_stops_and_crashes_leave_nothing(clean: Host) -> None:
    define(clean, "web", SERVE, service='restart = "no"')
    define(clean, "deaf", DEAF, service='restart = "no"\ntimeout_stop_sec = "50ms"')
    define(clean, "crash", "exit 9", service='restart = "no"')
    define(clean, "none", "true", service='restart = "no"')
    clean.run(r"sed -i 's,/bin/sh,/bin/nosuch,' /etc/cleat/containers/none.toml")
    clean.reload()
    script = """
    i=0
    while [ $i -lt $0 ]; do
        i=$((i + 6))
        cleat start web deaf >/dev/null & cleat start crash >/dev/null 2>&1 & cleat start none >/dev/null 2>&1 &
        wait
        case $((i % 4)) in
        0) cleat stop web deaf ;;
        2) systemctl stop cleat-web.scope cleat-deaf.scope ;;
        esac
        systemctl start cleat@web && cleat kill -s KILL web
        systemctl start cleat@deaf && systemctl stop cleat@deaf cleat@web || exit 1
    done
    """
    clean.run(["sh", "-c", script, str(ROUNDS)], timeout=60 + ROUNDS * 0.5)
    scopes = clean.run(["systemctl", "list-units", "--all", "--plain", "--no-legend", "cleat-*.scope"]).stdout
    assert scopes == ""
    failed = clean.run(["systemctl", "list-units", "--failed", "--plain", "--no-legend"]).stdout.split()
    assert not [word for word in failed if word.endswith(".scope")]
    # Handles of what failed say so, as a service would.
    clean.run(["systemctl", "reset-failed", "cleat@*.service"], check=False)
