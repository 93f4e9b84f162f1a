# SPDX-License-Identifier: Apache-2.0
"""What the package puts on a host."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
