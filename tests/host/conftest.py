# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the host tier: one private host for the session, driven from outside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.host import nspawn
from tests.host.hosts import Host, add_journal, build_package, kept_clean

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


@pytest.fixture(scope="session")
def bare_host() -> Iterator[Host]:
    """A booted host without cleat."""
    name = f"pytest-{os.getpid()}"
    try:
        yield Host(nspawn.boot(name))
    finally:
        nspawn.stop(name)


@pytest.fixture(scope="session")
def host(bare_host: Host) -> Host:
    """A booted host with this checkout's cleat package installed and cleat.service running.

    $CLEAT_TEST_CONMON is a conmon binary to use instead of the distribution's.
    """
    other = os.environ.get("CLEAT_TEST_CONMON")
    if other:
        bare_host.write("/usr/bin/conmon", Path(other).read_bytes(), 0o755)
    bare_host.install(build_package())
    bare_host.run(["systemctl", "start", "cleat.service"], timeout=60)
    return bare_host


@pytest.fixture
def clean(host: Host) -> Iterator[Host]:
    """The host for one test, which must leave nothing behind."""
    with kept_clean(host):
        yield host


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    add_journal(item, report, ("clean", "host", "bare_host"))
    return report
