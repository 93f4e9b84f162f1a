# SPDX-License-Identifier: Apache-2.0
"""The ground itself: a booted host has what every other test here stands on. Needs no cleat package."""

from __future__ import annotations

import re

import pytest

from tests.host.hosts import CommandError, Host
from tests.host.machine import HostError


def test_systemd_is_up(bare_host: Host) -> None:
    assert bare_host.run(["systemctl", "is-system-running"]).stdout.strip() == "running"
    assert bare_host.run(["systemctl", "--failed", "--plain", "--no-legend"]).stdout == ""
    assert bare_host.run("readlink /proc/1/exe").stdout.strip() == "/usr/lib/systemd/systemd"


def test_dbus_answers(bare_host: Host) -> None:
    manager = "org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager"
    assert re.match(r's "257', bare_host.run(f"busctl get-property {manager} Version").stdout)


def test_journal_is_followed(bare_host: Host) -> None:
    mark = bare_host.cursor()
    bare_host.run(["logger", "-t", "smoke", "hello from the test"])
    entry = bare_host.wait_journal("SYSLOG_IDENTIFIER=smoke", since=mark)
    assert entry["MESSAGE"] == "hello from the test"
    assert bare_host.journal("SYSLOG_IDENTIFIER=smoke", since=mark) == [entry]


def test_what_never_comes_is_an_error_with_the_journal(bare_host: Host) -> None:
    with pytest.raises(HostError, match="no journal entry SYSLOG_IDENTIFIER=never"):
        bare_host.wait_journal("SYSLOG_IDENTIFIER=never", timeout=0.5)


def test_tools_and_transient_scopes(bare_host: Host) -> None:
    for tool in ("conmon", "crun", "runc"):
        assert re.search(r"version \d+\.\d+", bare_host.run([tool, "--version"]).stdout)
    root = bare_host.rootfs("smoke")
    assert bare_host.run(["chroot", root, "/bin/sh", "-c", "id -u; ls /proc"]).stdout == "0\n"
    scope = ["systemd-run", "--scope", "--quiet", "--property=Delegate=yes", "--unit=smoke"]
    assert "0::/system.slice/smoke.scope" in bare_host.run([*scope, "cat", "/proc/self/cgroup"]).stdout


def test_commands_fail_and_end_in_time(bare_host: Host) -> None:
    assert bare_host.run("echo out; echo err >&2; exit 7", check=False).returncode == 7
    with pytest.raises(CommandError, match="exit code 3"):
        bare_host.run(["sh", "-c", "exit 3"])
    with pytest.raises(CommandError, match="not done after"):
        bare_host.run(["sleep", "30"], timeout=0.3)
    assert bare_host.run(["pgrep", "-x", "sleep"], check=False).returncode == 1


def test_files_go_both_ways(bare_host: Host) -> None:
    bare_host.write("/run/smoke/a b", "line\n", mode=0o600)
    assert bare_host.read("/run/smoke/a b") == "line\n"
    assert bare_host.run(["stat", "-c", "%a %U", "/run/smoke/a b"]).stdout == "600 root\n"


def test_loopback_is_the_only_link(bare_host: Host) -> None:
    links = bare_host.run("ip -br link").stdout.splitlines()
    assert [line.split()[0] for line in links] == ["lo"]
    assert "UP" in links[0]


def test_libraries_are_there(bare_host: Host) -> None:
    bare_host.run(["python3", "-c", "import dbus_next, msgspec, psutil, systemd.journal, tomli"])
