# SPDX-License-Identifier: Apache-2.0
"""Users of a root file system whose passwd and group an attacker wrote."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.errors import InvalidArgument
from agent.oci.inputs import Identity
from agent.oci.users import MAX_ID, identity_in_root, parse_id, resolve

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
app:x:1000:1001:App:/srv/app:/bin/sh
app:x:0:0:the second of that name:/root:/bin/sh
1000:x:0:0:named like a number:/root:/bin/sh
short:x:7:8
newline\tin:x:9:9::/ho\x1bme:/bin/sh
relative:x:11:11::home:/bin/sh
"""
GROUP = b"""root:x:0:root
web:x:33:app,other
audio:x:63:app
app:x:1001:
44:x:0:app2
"""


def of(user: str, *groups: str) -> Identity:
    return resolve(user, groups, PASSWD, GROUP)


@pytest.mark.parametrize(
    ("user", "identity"),
    [
        ("", Identity(home="/root")),
        ("root", Identity(additional_gids=(0,), home="/root")),
        ("0", Identity(additional_gids=(0,), home="/root")),
        ("app", Identity(uid=1000, gid=1001, additional_gids=(1001, 33, 63), home="/srv/app")),
        ("1000", Identity(uid=1000, gid=1001, additional_gids=(1001, 33, 63), home="/srv/app")),
        ("app:web", Identity(uid=1000, gid=33, additional_gids=(33,), home="/srv/app")),
        ("app:44", Identity(uid=1000, gid=44, additional_gids=(44,), home="/srv/app")),
        ("4242", Identity(uid=4242, gid=0, additional_gids=(0,), home="/")),
        ("4242:4343", Identity(uid=4242, gid=4343, additional_gids=(4343,), home="/")),
        ("short", Identity(uid=7, gid=8, additional_gids=(8,), home="/")),
        ("relative", Identity(uid=11, gid=11, additional_gids=(11,), home="/")),
        (":web", Identity(gid=33, additional_gids=(33,), home="/root")),
    ],
)
def test_forms(user: str, identity: Identity) -> None:
    assert of(user) == identity


def test_a_number_is_never_a_name() -> None:
    """The image calls uid 0 "1000"; who asks for 1000 must not become root."""
    assert resolve("1000", (), b"1000:x:0:0::/root:\n", b"").uid == 1000
    assert resolve("5:1000", (), b"", b"1000:x:0:\n").gid == 1000


def test_more_groups() -> None:
    assert of("app", "audio", "500").additional_gids == (1001, 33, 63, 500)
    assert of("", "web").additional_gids == (33,)


@pytest.mark.parametrize(
    "user",
    ["nobody", "app:nogroup", "-1", "+5", "4294967295", "4294967296", "99999999999999999999", "app:", "a:b:c", "1e3",
     "\u0661", "a\nb", "app\0", " app", "0x10", "5:4294967295"],
)  # fmt: skip
def test_what_cannot_be_resolved_is_refused(user: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        of(user)
    assert caught.value.key == "user"


def test_an_unknown_group_of_groups_has_that_key() -> None:
    with pytest.raises(InvalidArgument, match="groups: there is no group 'nope'"):
        of("app", "nope")


def test_the_home_cannot_start_a_new_line() -> None:
    assert of("newline\tin").home == "/"
    assert resolve("x", (), b"x:x:5:5::/a\rb\nHOME=/evil:/bin/sh", b"").home == "/"


def test_an_empty_root_has_root(tmp_path: Path) -> None:
    assert identity_in_root(tmp_path, "") == Identity(home="/")


def root_with(tmp_path: Path, passwd: bytes = PASSWD, group: bytes = GROUP) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_bytes(passwd)
    (tmp_path / "etc/group").write_bytes(group)
    return tmp_path


def test_the_files_of_the_root_are_read(tmp_path: Path) -> None:
    assert identity_in_root(root_with(tmp_path), "app").uid == 1000


def test_the_hosts_users_are_not(tmp_path: Path) -> None:
    root = root_with(tmp_path, passwd=b"")
    with pytest.raises(InvalidArgument, match="no user 'daemon'"):
        identity_in_root(root, "daemon", container="web")


def test_a_symlink_to_the_hosts_file_stays_inside(tmp_path: Path) -> None:
    root = root_with(tmp_path)
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to("/etc/passwd")
    with pytest.raises(InvalidArgument, match=r"cannot read /etc/passwd"):
        identity_in_root(root, "root")


def test_a_fifo_for_a_passwd_is_refused(tmp_path: Path) -> None:
    root = root_with(tmp_path)
    (root / "etc/passwd").unlink()
    os.mkfifo(root / "etc/passwd")
    with pytest.raises(InvalidArgument, match="not a regular file"):
        identity_in_root(root, "root")


def test_a_huge_passwd_is_refused(tmp_path: Path) -> None:
    root = root_with(tmp_path)
    os.truncate(root / "etc/passwd", 1 << 40)
    with pytest.raises(InvalidArgument, match="larger than"):
        identity_in_root(root, "root")


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "etc/passwd").mkdir(parents=True)
    with pytest.raises(InvalidArgument, match="not a regular file"):
        identity_in_root(tmp_path, "root")


@given(st.text(), st.lists(st.text(), max_size=2), st.binary(), st.binary())
@example("x", [], b"x:x:4294967295:0::/:", b"")
@example("x", [], b"x:x:-1:-1::/:", b"")
def test_whatever_the_files_hold_the_numbers_are_sound(
    user: str, groups: list[str], passwd: bytes, group: bytes
) -> None:
    try:
        found = resolve(user, groups, passwd, group)
    except InvalidArgument:
        return
    assert all(0 <= number <= MAX_ID for number in (found.uid, found.gid, *found.additional_gids))
    assert found.home.startswith("/")
    assert found.home.isprintable()


field = st.text("abrot019x-+ #/\t", max_size=6)
line = st.lists(field, min_size=0, max_size=8).map(":".join)


@given(st.lists(line).map("\n".join), st.lists(line).map("\n".join), st.integers(0, MAX_ID))
def test_a_uid_is_that_uid_whatever_the_image_says(passwd: str, group: str, uid: int) -> None:
    assert resolve(str(uid), (), passwd.encode(), group.encode()).uid == uid


@given(st.text())
def test_ids_are_plain_decimal_numbers(text: str) -> None:
    value = parse_id(text)
    assert value is None or (0 <= value <= MAX_ID and str(value) == (text.lstrip("0") or "0"))
