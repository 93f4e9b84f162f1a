# SPDX-License-Identifier: Apache-2.0
"""Who may do what: root everything, everybody look, others what a polkit rule gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.host.test_dbus_api import MANAGER, NAME, PATH
from tests.host.test_handles import define

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.hosts import Host, Result

RULE = """\
polkit.addRule(function(action, subject) {
    if (action.id == "org.cleat.Agent1.manage-containers" && action.lookup("container") == "web"
            && ["Start", "Stop"].indexOf(action.lookup("method")) >= 0 && subject.isInGroup("operator"))
        return polkit.Result.YES;
});
"""


@pytest.fixture
def web(clean: Host) -> Iterator[Host]:
    clean.write("/etc/polkit-1/rules.d/49-test.rules", RULE)
    clean.run("id op >/dev/null 2>&1 || useradd --groups operator op")
    define(clean, "web")
    define(clean, "other")
    clean.reload()
    yield clean
    clean.run("rm /etc/polkit-1/rules.d/49-test.rules; userdel op")


def call(host: Host, user: str, *args: str) -> Result:
    command = ["busctl", "call", NAME, PATH, MANAGER, *args]
    return host.run(["setpriv", f"--reuid={user}", "--init-groups", *command], check=False)


@pytest.mark.parametrize("arguments", [("GetStatus", "as", "0"), ("Info",), ("Stats", "as", "0"), ("Images",)])
def test_everybody_may_look(web: Host, arguments: tuple[str, ...]) -> None:
    assert call(web, "nobody", *arguments).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("Start", "s", "web"),
        ("Kill", "sib", "web", "9", "true"),
        ("Inspect", "sb", "web", "true"),
        ("Top", "s", "web"),
        ("Plan",),
        ("ReloadDefinitions",),
        ("Exec", "ss", "web", "{}"),
        ("Attach", "s", "web"),
        ("Pull", "s", "web"),
        ("Prune", "b", "true"),
    ],
)
def test_nobody_may_do(web: Host, arguments: tuple[str, ...]) -> None:
    refused = call(web, "nobody", *arguments)
    assert refused.returncode == 1
    assert "may not do this: polkit refuses" in refused.stderr
    assert web.status("web")["state"] == "inactive"


def test_looking_makes_no_instances(web: Host) -> None:
    define(web, "work@")
    web.reload()
    assert "no such container" in call(web, "nobody", "GetStatus", "as", "1", "work@1").stderr
    assert [row["name"] for row in web.status()] == ["other", "web"]


def test_a_rule_sees_method_and_container(web: Host) -> None:
    assert call(web, "op", "Start", "s", "web").returncode == 0
    assert web.status("web")["state"] == "running"
    assert "polkit refuses" in call(web, "op", "Start", "s", "other").stderr
    assert "polkit refuses" in call(web, "op", "Pause", "s", "web").stderr
    assert call(web, "op", "Stop", "st", "web", "0").returncode == 0
