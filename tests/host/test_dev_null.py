# SPDX-License-Identifier: Apache-2.0
"""The host's /dev/null stays the host's: no payload gets it as a standard stream, whatever user it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.host.isolation import running, shiftable_rootfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.hosts import Host

# Change the mode of the streams that were handed over; then a fd of one's own.
_SPOIL = "chmod 600 /proc/self/fd/0 /proc/self/fd/1 /dev/null; exec sleep infinity"


def _null(host: Host) -> str:
    return host.run(["stat", "-c", "%a %u:%g %t:%T %d:%i", "/dev/null"]).stdout


@pytest.fixture
def untouched(clean: Host) -> Iterator[Host]:
    before = _null(clean)
    try:
        yield clean
        assert _null(clean) == before
        assert before.startswith("666 0:0 1:3 ")
    finally:
        # Of what is spoilt here every later test would suffer.
        clean.run(["sh", "-c", "chown 0:0 /dev/null; chmod 666 /dev/null"])


@pytest.mark.parametrize("runtime", ["crun", "runc"])
@pytest.mark.parametrize("driver", ["journald", "passthrough"])
@pytest.mark.parametrize(
    "keys",
    [
        "",
        'user = "www-data"',
        '[security]\nuser_namespace = "map"\nuid_map = ["0:200000:65536"]',
        'user = "www-data"\n[security]\nuser_namespace = "map"\nuid_map = ["0:200000:65536"]',
        "[security]\nprivileged = true",
        "rootfs_writable = true",
    ],
    ids=["root", "user", "mapped-root", "mapped-user", "privileged", "writable"],
)
def test_host_null_is_not_passed_on(untouched: Host, runtime: str, driver: str, keys: str) -> None:
    root = shiftable_rootfs(untouched, "nulls")
    head, table, rest = keys.partition("[")
    pid = running(
        untouched,
        "null",
        f'rootfs = "{root}"\ncommand = ["/bin/sh", "-c", "{_SPOIL}"]\n{head}\n{table}{rest}\n'
        f'[log]\ndriver = "{driver}"',
        runtime=runtime,
    )
    # Another device inode than the host's.
    host_null = untouched.run(["stat", "-L", "-c", "%d:%i", "/dev/null"]).stdout
    assert untouched.run(["stat", "-L", "-c", "%d:%i", f"/proc/{pid}/fd/0"]).stdout != host_null
    assert untouched.run(["stat", "-L", "-c", "%t:%T", f"/proc/{pid}/fd/0"]).stdout == "1:3\n"


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_commands_and_health_checks_do_not_get_it_either(untouched: Host, runtime: str) -> None:
    running(untouched, "null", '[health]\ncommand = ["/bin/true"]\ninterval_sec = "0.2s"', runtime=runtime)
    spoil = "chmod 600 /proc/self/fd/0; true"
    for user in ("0", "www-data"):
        untouched.cleat("exec", "-u", user, "null", "--", "sh", "-c", spoil)
    untouched.wait_journal("CLEAT_CONTAINER=null", "CLEAT_EVENT=healthy")
