# SPDX-License-Identifier: Apache-2.0
"""Commands executed beside a container's first process, and the capability sets of both."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.definition.model import Container, Security
from agent.errors import InvalidArgument
from agent.oci import capabilities, spec
from agent.oci.inputs import Identity, SpecInputs
from agent.oci.process import ExecOptions, process_for_exec

USER = Identity(uid=101, gid=101, additional_gids=(101,), home="/var/cache/app")
ROOT = Identity(home="/root")


def first(identity: Identity = USER, **security: Any) -> dict[str, Any]:
    container = Container(
        name="web", command=("/app",), terminal=True, environment={"A": "1"}, security=Security(**security)
    )
    inputs = SpecInputs(
        container_id="0" * 64, root_path="/r", identity=identity, listen_fds=1, listen_fdnames=("http",),
        watchdog_usec=1, notify_socket_dir="/n", selinux_process_label="l", apparmor_profile="a",
    )  # fmt: skip
    process: dict[str, Any] = spec.build(container, inputs)["process"]
    return process


def executed(process: dict[str, Any], identity: Identity | None = None, **options: Any) -> dict[str, Any]:
    return process_for_exec(process, ExecOptions(**{"command": ("id",), **options}), identity)


def env(process: dict[str, Any]) -> dict[str, str]:
    return dict(item.split("=", 1) for item in process["env"])


def test_the_containers_process_is_left_as_it_is() -> None:
    process = first()
    before = copy.deepcopy(process)
    executed(process, ROOT, environment={"A": "2"}, capabilities_add=("net_admin",))["env"].append("X=1")
    assert process == before


def test_what_protects_is_kept() -> None:
    process = executed(first(), ROOT)
    assert process["noNewPrivileges"]
    assert process["selinuxLabel"] == "l"
    assert process["apparmorProfile"] == "a"
    assert process["user"] == {"uid": 0, "gid": 0, "umask": 0o022}


def test_the_own_user_is_kept_without_an_identity() -> None:
    process = executed(first())
    assert process["user"] == {"uid": 101, "gid": 101, "additionalGids": [101], "umask": 0o022}
    assert process["args"] == ["id"]
    assert process["cwd"] == "/"


def test_variables_are_added_and_replaced_but_not_doubled() -> None:
    process = executed(first(), environment={"A": "2", "B": "3"})
    assert [item for item in process["env"] if item.startswith(("A=", "B="))] == ["A=2", "B=3"]


def test_sockets_and_watchdog_are_the_first_process_own() -> None:
    names = set(env(executed(first())))
    assert not names & {"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC"}
    assert "NOTIFY_SOCKET" in names


def test_another_user_gets_their_home_unless_one_is_given() -> None:
    assert env(executed(first(), ROOT))["HOME"] == "/root"
    assert env(executed(first()))["HOME"] == "/var/cache/app"
    assert env(executed(first(), ROOT, environment={"HOME": "/x"}))["HOME"] == "/x"


def test_terminal_and_its_size() -> None:
    assert not executed(first())["terminal"]
    process = executed(first(), terminal=True, width=80, height=25)
    assert process["terminal"]
    assert process["consoleSize"] == {"height": 25, "width": 80}
    assert "consoleSize" not in executed(first(), terminal=True)
    assert env(process)["TERM"] == "xterm"


def test_an_empty_command_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        executed(first(), command=())


def test_root_has_the_containers_bounding_set() -> None:
    sets = executed(first(capabilities_drop=("chown",)), ROOT)["capabilities"]
    assert sets["permitted"] == sets["effective"] == sets["bounding"]
    assert "CAP_CHOWN" not in sets["bounding"]
    assert sets["inheritable"] == sets["ambient"] == []


def test_others_have_no_capabilities() -> None:
    for identity in (None, USER, Identity(uid=7, gid=7)):
        sets = executed(first(), identity)["capabilities"]
        assert sets["permitted"] == sets["effective"] == sets["inheritable"] == sets["ambient"] == []
        assert sets["bounding"]


def test_an_added_capability_outlives_execve() -> None:
    sets = executed(first(), capabilities_add=("net_admin",))["capabilities"]
    for name in ("permitted", "effective", "inheritable", "ambient"):
        assert sets[name] == ["CAP_NET_ADMIN"]
    assert "CAP_NET_ADMIN" in sets["bounding"]


def test_ambient_capabilities_stay_with_the_containers_user_only() -> None:
    process = first(ambient_capabilities=("net_raw",))
    assert process["capabilities"]["ambient"] == ["CAP_NET_RAW"]
    assert executed(process)["capabilities"]["ambient"] == ["CAP_NET_RAW"]
    assert executed(process, Identity(uid=7, gid=7))["capabilities"]["ambient"] == []


def test_podmans_default_capabilities() -> None:
    sets = first(ROOT)["capabilities"]
    assert [name.removeprefix("CAP_") for name in sets["effective"]] == [
        "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP",
        "SETUID", "SYS_CHROOT",
    ]  # fmt: skip


def test_a_user_has_no_effective_capabilities() -> None:
    sets = first(USER)["capabilities"]
    assert sets["effective"] == sets["permitted"] == []
    assert len(sets["bounding"]) == 11


def test_drop_all_leaves_what_is_added() -> None:
    found = capabilities.effective_bounding(Security(capabilities_drop=("all",), capabilities_add=("KILL",)), None)
    assert found == {"CAP_KILL"}


def test_all_is_what_the_host_has() -> None:
    host = frozenset({"CAP_KILL", "CAP_CHOWN"})
    assert capabilities.effective_bounding(Security(capabilities_add=("ALL",)), host) == host
    assert capabilities.effective_bounding(Security(privileged=True), host) == host
    assert capabilities.effective_bounding(
        Security(privileged=True, capabilities_drop=("CAP_KILL",)), host
    ) == {"CAP_CHOWN"}  # fmt: skip


def test_one_capability_cannot_be_added_and_dropped() -> None:
    with pytest.raises(InvalidArgument, match="CAP_KILL is both"):
        capabilities.effective_bounding(Security(capabilities_add=("kill",), capabilities_drop=("CAP_KILL",)), None)


def test_an_unknown_capability_is_named_with_the_nearest() -> None:
    with pytest.raises(InvalidArgument, match="did you mean CAP_NET_ADMIN"):
        capabilities.normalise(["net_admn"], "security.capabilities_add")


def test_the_mask_of_proc_status() -> None:
    assert capabilities.from_mask(0x800405FB) == capabilities.DEFAULT
    assert capabilities.from_mask((1 << len(capabilities.KNOWN)) - 1) == frozenset(capabilities.KNOWN)


names = st.lists(st.sampled_from([*capabilities.KNOWN, "ALL"]), max_size=4).map(tuple)


@given(names, names, names, st.sampled_from(["plain", "privileged"]), st.sampled_from([ROOT, USER]))
def test_sets_are_always_such_that_the_kernel_takes_them(
    added: tuple[str, ...], dropped: tuple[str, ...], ambient: tuple[str, ...], kind: str, identity: Identity
) -> None:
    security = Security(
        capabilities_add=added,
        capabilities_drop=dropped,
        ambient_capabilities=ambient,
        privileged=kind == "privileged",
    )
    try:
        sets = {name: set(value) for name, value in capabilities.sets(security, identity).items()}
    except InvalidArgument:
        assert set(added) & set(dropped)
        return
    assert sets["ambient"] == sets["inheritable"]
    assert sets["ambient"] <= sets["permitted"] <= sets["bounding"]
    assert sets["effective"] == sets["permitted"]
    assert bool(sets["ambient"]) == bool(ambient)
