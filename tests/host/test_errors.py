# SPDX-License-Identifier: Apache-2.0
"""Mistakes in definitions: all at once, with place and remedy; what runs is not touched, the rest goes on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.host import samples

if TYPE_CHECKING:
    from tests.host.hosts import Host

BAD = """\
rootfs = "/srv/nowhere"
comand = ["/bin/sh"]
command = ["/bin/true"]
[service]
restart = "sometimes"
timeout_stop_sec = "10 parsecs"
[resources]
memory_max = "lots"
tasks_max = -1
[[socket]]
listen_stream = "notaport"
"""
PLACES = {
    ("rootfs", 1, 1),
    ("comand", 2, 1),
    ("service.restart", 5, 1),
    ("service.timeout_stop_sec", 6, 1),
    ("resources.memory_max", 8, 1),
    ("resources.tasks_max", 9, 1),
    ("socket[0].listen_stream", 11, 1),
}


def places(found: list[dict[str, Any]]) -> set[tuple[str, int, int]]:
    return {(one["key"].replace("socket.0", "socket[0]"), one["line"], one["column"]) for one in found}


def test_every_mistake_at_once_with_its_place(clean: Host) -> None:
    samples.add(clean, bad=BAD, good=samples.definition())
    samples.reload_with_problems(clean)
    assert clean.status("good")["state"] == "running"
    result = clean.cleat("check", "--json", check=False)
    assert result.returncode == 1
    found = json.loads(result.stdout)
    assert places(found) == PLACES
    assert {one["file"] for one in found} == {"/etc/cleat/containers/bad.toml"}
    assert all(one["reason"] for one in found)
    (unknown,) = [one for one in found if one["key"] == "comand"]
    assert "command" in unknown["reason"] + unknown["hint"]
    entries = clean.journal("CLEAT_EVENT=definition-rejected")
    for key, line, column in PLACES:
        assert any(f"bad.toml:{line}:{column}" in e["MESSAGE"] for e in entries), key
    text = clean.cleat("check", check=False)
    for _, line, column in PLACES:
        assert f"/etc/cleat/containers/bad.toml:{line}:{column}" in text.stdout + text.stderr
    failed = clean.cleat("start", "bad", check=False)
    assert failed.returncode != 0
    assert "bad.toml:" in failed.stderr


def test_a_mistake_is_told_once_until_it_changes(clean: Host) -> None:
    samples.add(clean, bad="comand = 1\n" + samples.definition())
    for _ in range(3):
        samples.reload_with_problems(clean)
    assert len(clean.journal("CLEAT_EVENT=definition-rejected")) == 1
    samples.add(clean, bad="comandd = 1\n" + samples.definition())
    samples.reload_with_problems(clean)
    assert len(clean.journal("CLEAT_EVENT=definition-rejected")) == 2


def test_the_last_good_definition_stays(clean: Host) -> None:
    samples.run(clean, web=samples.definition())
    before = samples.identity(clean, "web")
    for text in (
        BAD,
        "= = =\n",
        "",
        samples.definition("\udcff".encode("utf-8", "surrogateescape").decode("latin1"))[:9],
    ):
        clean.definition("web", text)
        clean.cleat("reload-agent", check=False)
        assert samples.identity(clean, "web") == before, text
        assert clean.status("web")["state"] == "running"
        samples.agent_restarted(clean)
        assert samples.identity(clean, "web") == before, text
    clean.cleat("kill", "-s", "KILL", "web")
    clean.wait_event("web", "backoff")
    clean.definition("web", samples.definition(head='description = "mended"'))
    clean.reload()
    assert clean.status("web")["description"] == "mended"


def test_status_shows_what_was_refused(clean: Host) -> None:
    samples.add(clean, bad=BAD)
    samples.reload_with_problems(clean)
    result = clean.cleat("status", check=False)
    assert "bad" in result.stdout + result.stderr
    assert "bad" in clean.unit("cleat.service", "StatusText")["StatusText"]


def test_ownership_and_mode(clean: Host) -> None:
    samples.add(clean, theirs=samples.definition(), open=samples.definition(), good=samples.definition())
    clean.run(["chown", "nobody", "/etc/cleat/containers/theirs.toml"])
    clean.run(["chmod", "666", "/etc/cleat/containers/open.toml"])
    samples.reload_with_problems(clean)
    assert samples.states(clean) == {"good": "running"}
    said = " ".join(e["MESSAGE"] for e in clean.journal("CLEAT_EVENT=definition-rejected"))
    assert "theirs.toml" in said
    assert "open.toml" in said


def failed(host: Host, name: str) -> dict[str, Any]:
    entry = host.wait_event(name, "failed-to-start")
    status: dict[str, Any] = host.status(name)
    assert status["error"], entry
    assert status["state"] == "failed"
    assert entry["EXIT_CODE"] == str(status["exit_code"])
    assert entry["CODE"]
    return status


def test_programs_that_cannot_be_run(clean: Host) -> None:
    no = 'restart = "no"'
    samples.add(
        clean,
        missing=samples.service("x", no).replace("/bin/sh", "/bin/nosuch"),
        noexec=samples.service("x", no).replace("/bin/sh", "/etc/passwd"),
        folder=samples.service("x", no).replace("/bin/sh", "/etc"),
        user=samples.definition(head='user = "nosuchuser"', tables=f"[service]\n{no}\n"),
        nowhere=samples.definition(head='working_directory = "/etc/passwd"', tables=f"[service]\n{no}\n"),
    )
    clean.cleat("reload-agent", check=False)
    assert failed(clean, "missing")["exit_code"] == 127
    assert "/bin/nosuch" in clean.status("missing")["error"]
    assert failed(clean, "noexec")["exit_code"] == 126
    assert failed(clean, "folder")["exit_code"] == 126
    assert "nosuchuser" in failed(clean, "user")["error"]
    failed(clean, "nowhere")
    result = clean.cleat("start", "missing", check=False)
    assert result.returncode == 1, "127 is for run and exec; status tells it"
    assert "/bin/nosuch" in result.stderr
    assert samples.faults(clean) == []


def test_a_root_that_vanishes(clean: Host) -> None:
    samples.add(clean, web=samples.definition().replace("/srv/base", "/srv/gone"))
    clean.run(["cp", "-a", "/srv/base", "/srv/gone"])
    clean.reload()
    clean.wait_event("web", "ready")
    clean.run(["mv", "/srv/gone", "/srv/elsewhere"])
    clean.cleat("stop", "web")
    result = clean.cleat("start", "web", check=False)
    assert result.returncode != 0
    assert "/srv/gone" in result.stderr
    assert "/srv/gone" in clean.status("web")["error"]
    clean.run(["mv", "/srv/elsewhere", "/srv/gone"])
    clean.cleat("start", "web")
    assert clean.status("web")["error"] == ""
    clean.run(["rm", "-rf", "/srv/gone"])


def test_a_record_that_cannot_be_stored_is_told_until_it_can(clean: Host) -> None:
    """Once for each time that it becomes so, and what runs goes on."""
    folder = "/run/cleat/records"
    samples.add(clean, good=samples.definition())
    clean.reload()
    for round_ in (1, 2):
        clean.run(f"mount -t tmpfs -o ro,mode=700 little {folder}")
        clean.cleat("pause", "good")
        clean.cleat("resume", "good")
        clean.run(["umount", folder])
        told = clean.journal("CLEAT_CONTAINER=good", "CLEAT_EVENT=record-unwritable")
        assert len(told) == round_
        assert "Read-only file system" in told[-1]["MESSAGE"]
        clean.cleat("pause", "good")
        clean.cleat("resume", "good")
    assert clean.status("good")["state"] == "running"
