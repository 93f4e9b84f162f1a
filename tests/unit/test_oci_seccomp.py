# SPDX-License-Identifier: Apache-2.0
"""Seccomp profiles: conditions decided, files read."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import InvalidArgument, Unsupported
from agent.oci import seccomp
from agent.oci.seccomp import Host, resolve

X86 = Host("x86_64", (6, 12))
ARM = Host("aarch64", (5, 10))
PROFILE: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "defaultErrno": "ENOSYS",
    "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
    ],
    "syscalls": [
        {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "args": [], "includes": {}, "excludes": {}},
        {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32"]}},
        {"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "args": None, "includes": {"caps": ["CAP_SYS_CHROOT"]}},
        {
            "names": ["chroot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "errno": "EPERM",
            "excludes": {"caps": ["CAP_SYS_CHROOT", "CAP_SYS_ADMIN"]},
        },
        {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        {"names": ["new"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.0"}},
        {"names": ["old"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "6.0"}},
        {
            "names": ["socket"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["arm64"]},
            "args": [{"index": 0, "value": 16, "valueTwo": 0, "op": "SCMP_CMP_NE"},
                     {"index": 1, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}],
        },
    ],
}  # fmt: skip


def names(found: dict[str, Any]) -> list[str]:
    return [f"{name}:{rule['action'][9:]}" for rule in found["syscalls"] for name in rule["names"]]


def test_conditions_on_x86() -> None:
    found = resolve(PROFILE, ["CAP_SYS_CHROOT"], X86)
    assert names(found) == [
        "read:ALLOW", "write:ALLOW", "arch_prctl:ALLOW", "chroot:ALLOW", "ptrace:ALLOW", "new:ALLOW", "socket:ALLOW"
    ]  # fmt: skip
    assert found["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    assert found["defaultErrnoRet"] == 38


def test_conditions_on_arm_with_an_older_kernel() -> None:
    found = resolve(PROFILE, [], ARM)
    assert names(found) == ["read:ALLOW", "write:ALLOW", "chroot:ERRNO", "ptrace:ALLOW", "old:ALLOW"]
    assert found["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    assert found["syscalls"][1]["errnoRet"] == 1


def test_one_excluded_capability_is_enough() -> None:
    assert "chroot:ERRNO" not in names(resolve(PROFILE, ["CAP_SYS_ADMIN"], X86))


def test_arguments() -> None:
    rule = resolve(PROFILE, [], X86)["syscalls"][-1]
    assert rule["args"] == [
        {"index": 0, "value": 16, "op": "SCMP_CMP_NE"},
        {"index": 1, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"},
    ]


def test_an_architecture_without_entry_is_the_runtimes_native_one() -> None:
    assert "architectures" not in resolve(PROFILE, [], Host("riscv64", (6, 1)))


def test_a_profile_that_is_oci_already_passes() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_LOG"}],
    }
    assert resolve(profile, [], X86) == profile


def test_no_resolved_rule_keeps_a_condition() -> None:
    for rule in resolve(PROFILE, [], X86)["syscalls"]:
        assert set(rule) <= {"names", "action", "errnoRet", "args"}


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"defaultAction": "ALLOW"},
        {**PROFILE, "architectures": ["SCMP_ARCH_X86"]},
        {**PROFILE, "syscalls": {}},
        {**PROFILE, "syscalls": ["read"]},
        {**PROFILE, "syscalls": [{"action": "SCMP_ACT_ALLOW"}]},
        {**PROFILE, "syscalls": [{"names": ["x"], "action": "SCMP_ACT_SHRUG"}]},
        {**PROFILE, "syscalls": [{"names": ["x"], "action": "SCMP_ACT_ERRNO", "errno": "EWHAT"}]},
        {**PROFILE, "syscalls": [{"names": ["x"], "action": "SCMP_ACT_ERRNO", "errnoRet": "1"}]},
        {**PROFILE, "syscalls": [{"names": ["x"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0}]}]},
        {**PROFILE, "syscalls": [{"names": [1], "action": "SCMP_ACT_ALLOW"}]},
    ],
)
def test_a_malformed_profile_is_an_error(broken: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="no seccomp profile"):
        resolve(broken, [], X86)


def test_the_first_installed_file_is_the_default(tmp_path: Path) -> None:
    theirs = tmp_path / "usr.json"
    theirs.write_text(json.dumps(PROFILE))
    paths = (tmp_path / "etc.json", theirs)
    found = seccomp.load("default", ["CAP_SYS_CHROOT"], host=X86, paths=paths)
    assert found == resolve(PROFILE, ["CAP_SYS_CHROOT"], X86)
    (tmp_path / "etc.json").write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    assert seccomp.load("", [], host=X86, paths=paths) == {"defaultAction": "SCMP_ACT_ALLOW"}


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    for action in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG"):
        path.write_text(json.dumps({"defaultAction": action}))
        assert seccomp.load(str(path), [], host=X86) == {"defaultAction": action}


def test_unconfined_is_none() -> None:
    assert seccomp.load("unconfined", [], paths=()) is None


def test_no_installed_profile_names_the_packages(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="golang-github-containers-common"):
        seccomp.load("default", [], paths=(tmp_path / "none.json",))


@pytest.mark.parametrize(
    "content", [b"", b"not json", b"[]", b'{"defaultAction": 1}', b"\xff\xfe", b" " * (1 << 20) + b"{}"]
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"bad\.json"):
        seccomp.load(str(path), [])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"none\.json.*No such file"):
        seccomp.load(str(tmp_path / "none.json"), [])


def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidArgument):
        seccomp.load(str(tmp_path / "fifo"), [])


caps = st.sets(st.sampled_from(["CAP_A", "CAP_B", "CAP_C"]))
condition = st.fixed_dictionaries({}, optional={"caps": caps.map(sorted), "arches": st.just(["amd64"])})
rules = st.lists(
    st.fixed_dictionaries(
        {"names": st.just(["x"]), "action": st.just("SCMP_ACT_ALLOW"), "includes": condition, "excludes": condition}
    )
)


@given(rules, caps)
def test_each_rule_is_there_exactly_if_its_conditions_hold(rules: list[dict[str, Any]], bounding: set[str]) -> None:
    found = resolve({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}, bounding, X86).get("syscalls", [])
    holding = [
        rule
        for rule in rules
        if set(rule["includes"].get("caps", ())) <= bounding
        and not set(rule["excludes"].get("caps", ())) & bounding
        and "arches" not in rule["excludes"]
    ]
    assert len(found) == len(holding)


json_values = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from(["syscalls", "archMap", "flags", "architectures", "defaultErrno"]), json_values),
    st.dictionaries(st.sampled_from(["names", "args", "includes", "excludes", "errno", "errnoRet"]), json_values),
)
def test_any_json_resolves_or_is_refused(profile: dict[str, Any], rule: dict[str, Any]) -> None:
    whole = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"action": "SCMP_ACT_ERRNO", **rule}], **profile}
    with contextlib.suppress(InvalidArgument):
        resolve(whole, [], X86)
