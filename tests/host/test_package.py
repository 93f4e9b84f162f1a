# SPDX-License-Identifier: Apache-2.0
"""What the package puts on a host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.host import samples
from tests.host.hosts import PACKAGE_IN_HOST
from tests.host.nspawn import CHECKOUT

if TYPE_CHECKING:
    from tests.host.hosts import Host


def test_every_page_and_unit_is_in_it(host: Host) -> None:
    """Asked of the package itself: a small host may leave documentation out."""
    lines = host.run(["dpkg-deb", "--contents", PACKAGE_IN_HOST]).stdout.splitlines()
    files = {line.split()[5].removeprefix(".") for line in lines}
    for page in (CHECKOUT / "docs/man").glob("*.md"):
        assert f"/usr/share/man/man{page.stem[-1]}/{page.stem}.gz" in files
    for unit in (CHECKOUT / "units").rglob("*.*"):
        kind = "user" if unit.parent.name == "user" else "system"
        assert f"/usr/lib/systemd/{kind}/{unit.name}" in files


def test_units_name_pages_that_there_are(host: Host) -> None:
    pages = {f"{page.stem[:-2]}({page.stem[-1]})" for page in (CHECKOUT / "docs/man").glob("*.md")}
    shown = host.run("systemctl show --property=Documentation --value 'cleat.service' 'cleat@x.service'").stdout
    named = [word.removeprefix("man:") for word in shown.replace('"', "").split() if word.startswith("man:cleat")]
    assert named
    assert set(named) <= pages


def test_removed_and_purged(clean: Host) -> None:
    """A removal leaves what runs alone and answers for nobody; a purge takes all but the definitions."""
    socket = '[[socket]]\nlisten_stream = "127.0.0.1:8091"\non_demand = true\n'
    waits = samples.service("exit 3", 'restart_sec = "1min"')
    samples.run(clean, web=samples.definition(), loop=waits)
    clean.wait_event("loop", "backoff")
    samples.add(clean, later=samples.definition(tables=socket))
    clean.reload()
    listening = "ss --no-header --listening --tcp 'sport = 8091'"
    assert clean.run(listening).stdout
    pid = clean.status("web")["pid"]
    removed = clean.run(["dpkg", "--remove", "cleat"], timeout=60)
    assert "containers keep running" in removed.stdout
    assert clean.exists(f"/proc/{pid}")
    assert not clean.run(listening).stdout
    assert clean.unit("cleat@loop.service", "ActiveState")["ActiveState"] in {"failed", "inactive"}
    clean.run(["dpkg", "--purge", "cleat"], timeout=60)
    assert not clean.exists(f"/proc/{pid}")
    assert not clean.run("systemctl list-units --plain --no-legend 'cleat*'").stdout
    assert not clean.run("find /run/cleat /var/lib/cleat -mindepth 1 2>/dev/null || true").stdout
    assert clean.exists("/etc/cleat/containers/web.toml")
    clean.run(["dpkg", "--install", PACKAGE_IN_HOST], timeout=120)
    clean.run(["systemctl", "start", "cleat.service"])
    clean.wait_event("web", "ready", since=clean.mark)
