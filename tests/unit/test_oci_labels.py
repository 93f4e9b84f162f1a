# SPDX-License-Identifier: Apache-2.0
"""AppArmor profiles and SELinux labels."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.definition.model import Container, Security
from agent.errors import Unsupported
from agent.oci import labels
from agent.oci.labels import Contexts


def container(**security: object) -> Container:
    return Container(name="web", security=Security(**security))  # type: ignore[arg-type]


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    path = tmp_path / "profiles"
    names = ("containers-default-0.9.1", "containers-default-0.57.4", "my profile", "/usr/sbin/named")
    path.write_text("".join(f"{name} (enforce)\n" for name in names))
    return path


def test_without_apparmor_there_is_no_profile(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    assert labels.apparmor(container(), missing) == ""
    assert labels.apparmor(container(apparmor_profile="unconfined"), missing) == ""
    with pytest.raises(Unsupported, match="not enabled"):
        labels.apparmor(container(apparmor_profile="mine"), missing)


def test_the_newest_default_is_taken(profiles: Path) -> None:
    assert labels.apparmor(container(), profiles) == "containers-default-0.57.4"


def test_a_profile_must_be_loaded(profiles: Path) -> None:
    assert labels.apparmor(container(apparmor_profile="my profile"), profiles) == "my profile"
    assert labels.apparmor(container(apparmor_profile="unconfined"), profiles) == "unconfined"
    with pytest.raises(Unsupported, match="not loaded"):
        labels.apparmor(container(apparmor_profile="my"), profiles)


def test_privileged_containers_have_a_profile_only_by_name(profiles: Path) -> None:
    assert labels.apparmor(container(privileged=True), profiles) == ""
    assert labels.apparmor(container(privileged=True, apparmor_profile="my profile"), profiles) == "my profile"


def test_who_gets_selinux_labels() -> None:
    assert labels.need_selinux(container(), enabled=True)
    assert not labels.need_selinux(container(), enabled=False)
    assert not labels.need_selinux(container(privileged=True), enabled=True)
    assert labels.need_selinux(container(privileged=True, selinux_type="spc_t"), enabled=True)
    with pytest.raises(Unsupported, match="not enabled"):
        labels.need_selinux(container(selinux_level="s0"), enabled=False)


def test_labels_differ_in_their_categories() -> None:
    process, mount = labels.selinux(container(), Contexts(), (3, 700))
    assert process == "system_u:system_r:container_t:s0:c3,c700"
    assert mount == "system_u:object_r:container_file_t:s0:c3,c700"


def test_a_file_of_several_containers_has_no_categories() -> None:
    assert labels.for_all("system_u:object_r:container_file_t:s0:c3,c700") == "system_u:object_r:container_file_t:s0"
    assert labels.for_all("u:r:t:s0") == "u:r:t:s0"


def test_type_and_level_of_a_definition() -> None:
    process, mount = labels.selinux(container(selinux_type="web_t", selinux_level="s0:c9"), Contexts(), (3, 700))
    assert process == "system_u:system_r:web_t:s0:c9"
    assert mount == "system_u:object_r:container_file_t:s0:c9"


def test_contexts_are_the_policy_s(tmp_path: Path) -> None:
    assert labels.selinux_contexts(tmp_path) == Contexts()
    (tmp_path / "config").write_text("# SELINUXTYPE=x\nSELINUX=enforcing\nSELINUXTYPE=mls\n")
    contexts = tmp_path / "mls" / "contexts"
    contexts.mkdir(parents=True)
    (contexts / "lxc_contexts").write_text('process = "u:r:p_t:s0"\nfile = "u:o:f_t:s0"\n')
    assert labels.selinux_contexts(tmp_path) == Contexts("u:r:p_t:s0", "u:o:f_t:s0")


@given(st.integers(), st.sets(st.tuples(st.integers(0, 1023), st.integers(0, 1023)), max_size=50))
def test_pairs_are_free_ordered_and_of_two(seed: int, used: set[tuple[int, int]]) -> None:
    first, second = labels.free_pair(used, random.Random(seed))
    assert 0 <= first < second < 1024
    assert (first, second) not in used


def test_pairs_run_out() -> None:
    everything = {(a, b) for a in range(1024) for b in range(a, 1024)}
    with pytest.raises(Unsupported, match="categories"):
        labels.free_pair(everything, random.Random(1))
