# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the VM tier: one virtual machine for all tests that leave it whole, driven like the host tier's host."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.host.hosts import Host, add_journal, build_package, kept_clean
from tests.host.machine import HostError
from tests.vm import qemu

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


@dataclass
class Stand:
    """The session's virtual machine. The next test replaces a lost one, but for one that does not boot."""

    name: str
    host: Host | None = None
    has_cleat: bool = False
    failure: HostError | None = None

    def bare(self) -> Host:
        if self.failure is not None:
            raise self.failure
        if self.host is None or self.host.machine.lost():
            self.stop()
            self.host = self._boot()
        return self.host

    def _boot(self) -> Host:
        try:
            machine = qemu.boot(self.name)
        except HostError as error:
            self.failure = error
            raise
        return Host(machine, patience=1.0 if machine.accelerator == "kvm" else 5.0)

    def with_cleat(self) -> Host:
        host = self.bare()
        if not self.has_cleat:
            host.install(build_package())
            host.run(["systemctl", "start", "cleat.service"], timeout=60)
            self.has_cleat = True
        return host

    def stop(self) -> None:
        self.host, self.has_cleat = None, False
        qemu.stop(self.name)


@pytest.fixture(scope="session")
def stand() -> Iterator[Stand]:
    stand = Stand(f"pytest-{os.getpid()}")
    yield stand
    stand.stop()


@pytest.fixture
def bare_vm(stand: Stand) -> Host:
    """A booted virtual machine; cleat may be on it, from an earlier test."""
    return stand.bare()


@pytest.fixture
def vm(stand: Stand) -> Host:
    """A virtual machine with this checkout's cleat package installed and cleat.service running."""
    return stand.with_cleat()


@pytest.fixture
def clean(vm: Host) -> Iterator[Host]:
    """The machine for one test, which must leave nothing behind."""
    with kept_clean(vm):
        yield vm


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    add_journal(item, report, ("clean", "vm", "bare_vm"))
    return report
