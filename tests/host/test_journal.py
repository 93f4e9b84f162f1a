# SPDX-License-Identifier: Apache-2.0
"""The journal: kinds with explanations, fields, container output, and a journald that goes away or is flooded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.host.test_handles import SERVE, define

if TYPE_CHECKING:
    from tests.host.hosts import Host


def test_fields_and_explanations(clean: Host) -> None:
    define(clean, "web", "echo hello; exit 3", service='restart = "no"')
    clean.reload()
    clean.cleat("start", "web", check=False)
    ended = clean.wait_event("web", "exited")
    assert ended["MESSAGE_ID"] == "9beca825f191417d9dc595dce1fa800a"
    assert (ended["CONTAINER_NAME"], ended["EXIT_CODE"], ended["CLEAT_UNIT"]) == ("web", "3", "cleat-web.scope")
    assert len(ended["CONTAINER_ID_FULL"]) == 64
    written = clean.wait_journal("CONTAINER_NAME=web", where=lambda e: e["MESSAGE"].strip() == "hello")
    assert written["CONTAINER_ID_FULL"] == ended["CONTAINER_ID_FULL"]
    explained = clean.run(["journalctl", "-x", "--no-pager", "CLEAT_CONTAINER=web"]).stdout
    assert "Subject: Container web has ended" in explained


def test_every_kind_is_in_the_catalog(clean: Host) -> None:
    kinds = "from agent.systemd.events import Event; print(*(e.message_id for e in Event))"
    ids = clean.run(
        ["python3", "-I", "-c", f"import sys; sys.path.insert(0, '/usr/lib/cleat'); {kinds}"]
    ).stdout.split()
    listed = clean.run(["journalctl", "--list-catalog"]).stdout
    assert [i for i in ids if i not in listed] == []


def test_journald_restarted_under_load(clean: Host) -> None:
    define(clean, "web", SERVE)
    clean.reload()
    script = """
    for i in $(seq 20); do cleat start web; cleat stop web; done & work=$!
    for i in 1 2 3; do systemctl restart systemd-journald; done
    wait $work
    """
    clean.run(script, timeout=60)
    assert len(clean.journal("CLEAT_EVENT=started", "CLEAT_CONTAINER=web")) == 20
    assert len(clean.journal("CLEAT_EVENT=stopped", "CLEAT_CONTAINER=web")) == 20
    assert clean.journal("CLEAT_EVENT=journal-dropped") == []


def test_a_flood_hides_nothing_of_the_agents(clean: Host) -> None:
    """journald's rate limit is per unit: the flood is the scope's, the entries are the agent's."""
    limit = "[Journal]\nRateLimitIntervalSec=30s\nRateLimitBurst=1000\n"
    clean.write("/run/systemd/journald.conf.d/zzz-flood.conf", limit)
    clean.run(["systemctl", "restart", "systemd-journald"])
    try:
        define(
            clean, "flood", "i=0; while [ $i -lt 50000 ]; do echo line $i; i=$((i + 1)); done", service='restart = "no"'
        )
        define(clean, "web")
        clean.reload()
        clean.cleat("start", "flood", "web", check=False)
        clean.wait_event("flood", "exited", timeout=60)
        clean.cleat("stop", "web")
        clean.wait_event("web", "stopped")
        assert 0 < len(clean.journal("CONTAINER_NAME=flood", "_COMM=conmon")) < 50000
    finally:
        clean.run("rm /run/systemd/journald.conf.d/zzz-flood.conf; systemctl restart systemd-journald")
