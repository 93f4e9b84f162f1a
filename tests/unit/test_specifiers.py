# SPDX-License-Identifier: Apache-2.0
"""Specifiers in strings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.definition.specifiers import HELP, Specifiers, unescape
from agent.definition.values import InvalidValue
from agent.paths import Paths

SPECIFIERS = Specifiers("web-shop@eu-west", "/etc/cleat/containers/web-shop@eu-west.toml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("%n", "web-shop@eu-west"),
        ("%p/%i", "web-shop/eu-west"),
        ("%P/%I", "web/shop/eu/west"),
        ("%j", "shop"),
        ("%t/x %S %C %L %E", "/run/x /var/lib /var/cache /var/log /etc"),
        ("100%%", "100%"),
        ("%%n", "%n"),
        ("%Y/web.env", "/etc/cleat/containers/web.env"),
        ("%U", str(os.geteuid())),
    ],
)
def test_expand(text: str, expected: str) -> None:
    assert SPECIFIERS.expand(text) == expected


@pytest.mark.parametrize("text", ["%", "50%", "%q", "%s", "% d", "%\n"])
def test_unknown(text: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        SPECIFIERS.expand(text)
    assert "%%" in caught.value.hint


def test_every_documented_specifier_works() -> None:
    for letter in HELP:
        assert isinstance(SPECIFIERS.expand(f"%{letter}"), str)


def test_facts_of_the_host() -> None:
    assert SPECIFIERS.expand("%H") == os.uname().nodename
    assert SPECIFIERS.expand("%v") == os.uname().release
    assert SPECIFIERS.expand("%b") == Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")


def test_user_folders(tmp_path: Path) -> None:
    paths = Paths(
        config=tmp_path / "c/cleat", runtime=tmp_path / "r/cleat", state=tmp_path / "s/cleat", vendor=tmp_path
    )
    found = Specifiers("a", "/a.toml", paths).expand("%E %t %S")
    assert found == f"{tmp_path}/c {tmp_path}/r {tmp_path}/s"


def test_values_but_not_keys_are_expanded() -> None:
    problems: list[tuple[object, InvalidValue]] = []
    table = {"%i": ["%i", 1, {"a": "%p"}], "resources": {"cpu_quota": "50%"}, "bad": ["%q"]}
    assert SPECIFIERS.expand_all(table, (), problems) == {
        "%i": ["eu-west", 1, {"a": "web-shop"}],
        "resources": {"cpu_quota": "50%"},
        "bad": ["%q"],
    }
    assert [path for path, _ in problems] == [("bad", 0)]


def test_unescape() -> None:
    assert unescape("srv-a\\x2db") == "srv/a-b"
