# SPDX-License-Identifier: Apache-2.0
"""The main job: definitions in a folder, a reload, and the host looks like them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.host import samples

if TYPE_CHECKING:
    from tests.host.hosts import Host


def plan(host: Host) -> dict[str, str]:
    actions: list[dict[str, Any]] = json.loads(host.cleat("plan", "--json").stdout)["actions"]
    return {action["name"]: action.get("action", action.get("verb", "")) for action in actions}


def test_a_reload_does_what_plan_says_and_nothing_else(clean: Host) -> None:
    samples.run(clean, same=samples.definition(), gone=samples.definition(), other=samples.definition())
    before = {name: samples.identity(clean, name) for name in ("same", "other")}
    clean.remove_definition("gone")
    samples.add(clean, other=samples.definition(head='environment = { A = "1" }'), new=samples.definition())
    assert plan(clean) == {"gone": "stop", "other": "restart", "new": "start"}
    text = clean.cleat("plan").stdout
    assert "environment" in text
    assert "same" not in text
    clean.reload()
    assert samples.states(clean) == {"same": "running", "other": "running", "new": "running"}
    assert samples.identity(clean, "same") == before["same"]
    assert clean.status("other")["id"] != before["other"][0]
    assert plan(clean) == {}
    assert clean.unit("cleat-gone.scope", "LoadState")["LoadState"] == "not-found"


def test_systemctl_reload_is_the_same(clean: Host) -> None:
    samples.add(clean, web=samples.definition())
    clean.run(["systemctl", "reload", "cleat.service"])
    assert clean.status("web")["state"] == "running"
    clean.remove_definition("web")
    clean.run(["systemctl", "reload", "cleat.service"])
    assert clean.status() == []


def test_a_change_of_layout_restarts_nothing(clean: Host) -> None:
    samples.run(clean, web=samples.definition())
    before = samples.identity(clean, "web")
    samples.add(clean, web="# a remark\n\n" + samples.definition())
    assert plan(clean) == {}
    clean.reload()
    assert samples.identity(clean, "web") == before


def test_what_can_change_live_does(clean: Host) -> None:
    samples.run(clean, web=samples.definition())
    before = samples.identity(clean, "web")
    samples.add(clean, web=samples.definition(head='description = "Shop"', tables="[service]\nrestart_sec = 7\n"))
    assert plan(clean) == {"web": "update"}
    clean.reload()
    assert samples.identity(clean, "web") == before
    assert clean.status("web")["description"] == "Shop"


def test_drop_ins_of_all_places_in_name_order(clean: Host) -> None:
    samples.add(clean, web=samples.definition(head='environment = { A = "file", B = "file", C = "file" }'))
    clean.write("/run/cleat/containers/web.toml.d/10.toml", 'environment = { A = "ten", B = "ten" }\n')
    clean.write("/etc/cleat/containers/web.toml.d/20.toml", 'environment = { B = "twenty" }\n')
    clean.reload()
    environment = clean.read(f"/proc/{clean.status('web')['pid']}/environ").split("\0")
    assert {"A=ten", "B=twenty", "C=file"} <= set(environment)
    clean.run(["rm", "-r", "/etc/cleat/containers/web.toml.d"])
    assert plan(clean) == {"web": "restart"}


def test_a_mask_stops_and_its_removal_starts(clean: Host) -> None:
    clean.rootfs("base")
    clean.write("/run/cleat/containers/web.toml", samples.definition())
    clean.reload()
    assert clean.status("web")["state"] == "running"
    clean.run(["ln", "-s", "/dev/null", "/etc/cleat/containers/web.toml"])
    clean.reload()
    assert clean.status() == []
    assert clean.cleat("start", "web", check=False).returncode != 0
    clean.remove_definition("web")
    clean.reload()
    assert clean.status("web")["state"] == "running"


def test_etc_wins_over_run(clean: Host) -> None:
    clean.write("/run/cleat/containers/web.toml", samples.definition("echo run; exec sleep 1000"))
    samples.run(clean, web=samples.definition("echo etc; exec sleep 1000"))
    assert clean.wait_journal("CONTAINER_NAME=web", "_COMM=conmon")["MESSAGE"].strip() == "etc"


def test_templates_and_their_instances(clean: Host) -> None:
    text = samples.definition(head='environment = { WHO = "%i of %n" }')
    clean.rootfs("base")
    clean.definition("worker@", text)
    clean.run(["ln", "-s", "worker@.toml", "/etc/cleat/containers/worker@one.toml"])
    clean.reload()
    assert samples.states(clean) == {"worker@one": "running"}
    clean.cleat("start", "worker@two")
    for name in ("one", "two"):
        environment = clean.read(f"/proc/{clean.status(f'worker@{name}')['pid']}/environ")
        assert f"WHO={name} of " in environment
    before = samples.identity(clean, "worker@two")
    clean.reload()
    assert samples.identity(clean, "worker@two") == before
    samples.add(clean, **{"worker@": samples.definition(head='environment = { WHO = "else" }')})
    clean.reload()
    assert clean.status("worker@one")["id"] != clean.status("worker@two")["id"] != before[0]


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_the_scope_as_systemd_sees_it(clean: Host, runtime: str) -> None:
    tables = f'[cgroup]\nslice = "shop-front.slice"\n[runtime]\nname = "{runtime}"\n'
    samples.run(clean, web=samples.definition(head='description = "Front end"', tables=tables))
    status = clean.status("web")
    shown = clean.unit("cleat-web.scope", "Description", "Slice", "Delegate", "ActiveState", "ControlGroup")
    group = "/shop.slice/shop-front.slice/cleat-web.scope"
    assert shown["ControlGroup"] == group
    assert (shown["Slice"], shown["Delegate"], shown["ActiveState"]) == ("shop-front.slice", "yes", "active")
    assert "web" in shown["Description"]
    assert "Front end" in shown["Description"]
    for key, leaf in (("pid", "container"), ("conmon_pid", "supervisor")):
        assert clean.read(f"/proc/{status[key]}/cgroup").strip().endswith(f"{group}/{leaf}")
    assert clean.read(f"/proc/{status['conmon_pid']}/comm") == "conmon\n"
    assert f"/{runtime}\0" in clean.read(f"/proc/{status['conmon_pid']}/cmdline")
    assert status["unit"] == "cleat-web.scope"


def test_output_and_events_in_the_journal(clean: Host) -> None:
    samples.run(clean, web=samples.service("echo to out; echo to err >&2; exec sleep 1000", 'restart = "no"'))
    container_id = clean.status("web")["id"]
    for text, priority in (("to out", "6"), ("to err", "3")):
        entry = clean.wait_journal("CONTAINER_NAME=web", where=lambda e, text=text: e["MESSAGE"].strip() == text)  # type: ignore[misc]
        assert entry["CONTAINER_ID_FULL"] == container_id
        assert entry["PRIORITY"] == priority
        assert entry["_COMM"] == "conmon"
    clean.cleat("kill", "-s", "KILL", "web")
    ended = clean.wait_event("web", "exited")
    assert ended["EXIT_CODE"] == "137"
    assert ended["CONTAINER_ID_FULL"] == container_id
    assert ended["CONTAINER_NAME"] == "web"
    assert ended["CLEAT_UNIT"] == "cleat-web.scope"
    events = clean.journal("CLEAT_CONTAINER=web")
    names = [entry["CLEAT_EVENT"] for entry in events]
    assert names[:2] == ["started", "ready"]
    assert all(len(entry["MESSAGE_ID"]) == 32 for entry in events)
    ids = {entry["CLEAT_EVENT"]: entry["MESSAGE_ID"] for entry in events}
    assert len(set(ids.values())) == len(ids)
    explained = clean.run(["journalctl", "-x", "-n", "1", f"MESSAGE_ID={ids['exited']}", "--no-pager"]).stdout
    assert "Subject: " in explained
    assert "to out" in clean.cleat("logs", "web").stdout


def test_dependencies_start_in_order_and_stop_in_reverse(clean: Host) -> None:
    samples.add(
        clean,
        db=samples.definition(),
        web=samples.definition(head='after = ["db"]\nrequires = ["db"]'),
    )
    clean.reload()
    events = [e["CLEAT_CONTAINER"] for e in clean.journal("CLEAT_EVENT=ready")]
    assert events == ["db", "web"]
    for name in ("db", "web"):
        clean.remove_definition(name)
    clean.reload()
    stopped = [e["CLEAT_CONTAINER"] for e in clean.journal("CLEAT_EVENT=stopped")]
    assert stopped == ["web", "db"]


def test_no_autostart_waits_for_a_start(clean: Host) -> None:
    samples.add(clean, web=samples.definition(head="autostart = false"))
    clean.reload()
    assert clean.status("web")["state"] == "inactive"
    clean.cleat("start", "web")
    assert clean.status("web")["state"] == "running"
    samples.agent_restarted(clean)
    assert clean.status("web")["state"] == "running"
    clean.cleat("stop", "web")
    clean.reload()
    assert clean.status("web")["state"] == "inactive"


def test_no_such_container(clean: Host) -> None:
    for verb in ("start", "stop", "restart", "inspect", "wait", "status"):
        result = clean.cleat(verb, "nosuch", check=False)
        assert result.returncode == 4, verb
        assert "nosuch" in result.stderr
