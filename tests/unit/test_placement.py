# SPDX-License-Identifier: Apache-2.0
"""Where conmon and payload go, for every cgroup mode and manager."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import cgroup
from agent.container.placement import SHARED_SCOPE, Placement, cgroup_args, placement, require_possible
from agent.definition.model import Cgroup, CgroupManager, CgroupMode, Container, Resources
from agent.errors import Unsupported

ID = "0123456789abcdef" * 4
MODES = list(CgroupMode)
MANAGERS = list(CgroupManager)


def place(mode: CgroupMode, manager: CgroupManager = CgroupManager.SYSTEMD, root: str = "") -> Placement:
    return placement(root, Cgroup(mode=mode, manager=manager), "web", ID, "cleat-web.scope")


def container(mode: CgroupMode, manager: CgroupManager = CgroupManager.SYSTEMD, **more: object) -> Container:
    return Container(name="web", cgroup=Cgroup(mode=mode, manager=manager), **more)  # type: ignore[arg-type]


def test_split_is_one_scope_with_two_groups() -> None:
    found = place(CgroupMode.SPLIT)
    assert found.units == ("cleat-web.scope",)
    assert found.first_unit == "cleat-web.scope"
    assert found.payload == found.cgroups_path == "/cleat.slice/cleat-web.scope/container"
    assert found.supervisor == "/cleat.slice/cleat-web.scope/supervisor"
    assert not found.runtime_scope


def test_enabled_has_two_scopes_and_the_runtime_makes_one() -> None:
    found = place(CgroupMode.ENABLED)
    assert found.units == ("cleat-web.scope", f"cleat-conmon-{ID}.scope")
    assert found.first_unit == f"cleat-conmon-{ID}.scope"
    assert found.cgroups_path == "cleat.slice:cleat:web"
    assert found.payload == "/cleat.slice/cleat-web.scope"
    assert found.runtime_scope


def test_no_conmon_shares_a_scope_that_is_nobodys() -> None:
    found = place(CgroupMode.NO_CONMON)
    assert found.first_unit == SHARED_SCOPE
    assert found.units == ("cleat-web.scope",)
    assert found.supervisor == f"/cleat.slice/{SHARED_SCOPE}/supervisor"


def test_disabled_leaves_the_payload_with_its_conmon() -> None:
    found = place(CgroupMode.DISABLED)
    assert found.payload == found.supervisor
    assert found.cgroups_path == ""
    assert not found.delegated
    assert cgroup_args(container(CgroupMode.DISABLED).cgroup) == ("--cgroup-manager=disabled",)
    assert cgroup_args(container(CgroupMode.SPLIT).cgroup) == ()


@pytest.mark.parametrize("mode", MODES)
def test_cgroupfs_makes_no_units(mode: CgroupMode) -> None:
    found = place(mode, CgroupManager.CGROUPFS)
    assert found.units == ()
    assert found.first_unit == ""
    assert not found.runtime_scope
    assert found.cgroup == "/cleat/container-web"
    assert found.cgroup in found.own_groups
    assert "/cleat/conmon" not in found.own_groups


@pytest.mark.parametrize("manager", MANAGERS)
@pytest.mark.parametrize("mode", MODES)
def test_what_others_share_is_not_its_own(mode: CgroupMode, manager: CgroupManager) -> None:
    found = place(mode, manager)
    assert found.supervisor_is_shared == (mode is CgroupMode.NO_CONMON)
    assert found.cgroup in found.groups
    is_covered = any(found.supervisor.startswith(group) for group in found.groups)
    assert is_covered != found.supervisor_is_shared


@pytest.mark.parametrize("manager", MANAGERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("root", ["", "/", "/user.slice/user@1000.service"])
def test_everything_is_ours_to_write(mode: CgroupMode, manager: CgroupManager, root: str) -> None:
    found = place(mode, manager, root)
    for path in (found.cgroup, found.payload, found.supervisor):
        assert cgroup.is_ours(path)
        assert path.startswith(root)
        assert "//" not in path


@given(st.text("abcdefgh0123456789._-", min_size=1, max_size=64))
def test_no_container_can_take_the_place_of_a_conmon(name: str) -> None:
    unit = f"cleat-{name}.scope"
    other = placement("", Cgroup(mode=CgroupMode.ENABLED), name, "f" * 64, unit)
    assert unit not in (SHARED_SCOPE, f"cleat-conmon-{ID}.scope")
    assert other.cgroup != place(CgroupMode.ENABLED).supervisor


def test_limits_need_a_scope() -> None:
    resources = Resources(properties={"memory_max": "64M"})
    limited = container(CgroupMode.SPLIT, CgroupManager.CGROUPFS, resources=resources)
    with pytest.raises(Unsupported, match="memory_max"):
        require_possible(limited, place(CgroupMode.SPLIT), runtime="crun", no_cgroups=True)


def test_disabled_needs_a_runtime_that_can() -> None:
    with pytest.raises(Unsupported, match="runc"):
        require_possible(container(CgroupMode.DISABLED), place(CgroupMode.DISABLED), runtime="runc", no_cgroups=False)
    require_possible(container(CgroupMode.DISABLED), place(CgroupMode.DISABLED), runtime="crun", no_cgroups=True)


def test_a_runtime_cannot_make_a_scope_with_a_colon() -> None:
    asked = container(CgroupMode.ENABLED)
    found = placement("", asked.cgroup, "web@1", ID, "cleat-web:1.scope")
    with pytest.raises(Unsupported, match="colon"):
        require_possible(asked, found, runtime="crun", no_cgroups=True)
