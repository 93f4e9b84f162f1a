# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the VM tier: one virtual machine for the session, driven like the host tier's host."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.host.hosts import Host, add_journal, build_package, kept_clean
from tests.vm import qemu

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


@pytest.fixture(scope="session")
def bare_vm() -> Iterator[Host]:
    """A booted virtual machine without cleat."""
    name = f"pytest-{os.getpid()}"
    try:
        machine = qemu.boot(name)
        yield Host(machine, patience=1.0 if machine.accelerator == "kvm" else 5.0)
    finally:
        qemu.stop(name)


@pytest.fixture(scope="session")
def vm(bare_vm: Host) -> Host:
    """A virtual machine with this checkout's cleat package installed and cleat.service running."""
    bare_vm.install(build_package())
    bare_vm.run(["systemctl", "start", "cleat.service"], timeout=60)
    return bare_vm


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
