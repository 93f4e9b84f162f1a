# SPDX-License-Identifier: Apache-2.0
"""The runtime spec: golden files of whole specs, and what must hold for each of them.

CLEAT_UPDATE_GOLDEN=1 writes the golden files anew; read the difference before keeping it.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.definition.model import (
    Cgroup,
    CgroupMode,
    Container,
    Network,
    Resources,
    Security,
)
from agent.errors import InvalidArgument
from agent.oci import spec
from agent.oci.image_config import ImageConfig
from agent.oci.inputs import Device, Identity, IdMapping, SpecInputs

GOLDEN = Path(__file__).parent / "golden/spec"
ID = "c0ffee" * 10 + "beef"
FUSE = Device(path="/dev/fuse", type="c", major=10, minor=229)
MAPPED = {"uid_mappings": (IdMapping(0, 100000, 65536),), "gid_mappings": (IdMapping(0, 200000, 65536),)}
IMAGE = ImageConfig(
    entrypoint=("/docker-entrypoint.sh",),
    cmd=("nginx", "-g", "daemon off;"),
    env={"PATH": "/usr/local/nginx/bin:/usr/bin", "NGINX_VERSION": "1.27"},
    working_dir="srv",
)


def container(**keys: Any) -> Container:
    return Container(**{"name": "web", "command": ("/bin/app",), **keys})


def inputs(**keys: Any) -> SpecInputs:
    return SpecInputs(**{"container_id": ID, "root_path": "/run/cleat/b/root", **keys})


CASES: dict[str, tuple[Container, SpecInputs]] = {
    "default": (container(), inputs(cgroups_path="/cleat.slice/cleat-web.scope/container")),
    "image": (
        Container(name="web", image="docker.io/library/nginx", environment={"LANG": "C.UTF-8"}, terminal=True),
        inputs(image=IMAGE, identity=Identity(uid=101, gid=101, additional_gids=(101, 44), home="/var/cache/nginx")),
    ),
    "handed-over": (
        container(name="web@blue"),
        inputs(
            listen_fds=2,
            listen_fdnames=("http", "admin"),
            notify_socket_dir="/run/cleat/b/notify",
            watchdog_usec=30_000_000,
            credentials_dir="/run/cleat/b/credentials",
            localtime="/usr/share/zoneinfo/Europe/Berlin",
            init_path="/usr/bin/catatonit",
            extra_mounts=(
                {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]},
                {"destination": "/etc/hosts", "type": "bind", "source": "/run/h", "options": ["bind", "rshared"]},
            ),
        ),
    ),
    "hardened": (
        container(
            security=Security(
                read_only=True,
                capabilities_drop=("ALL",),
                capabilities_add=("net_bind_service",),
                masked_paths=("/proc/cpuinfo",),
                unmasked_paths=("/proc/a*",),
                read_only_paths=("/proc/sysvipc",),
                umask=0o077,
                apparmor_profile="cleat-web",
            ),
            network=Network(mode="none"),
        ),
        inputs(
            seccomp={"defaultAction": "SCMP_ACT_ERRNO"},
            apparmor_profile="cleat-web",
            selinux_process_label="system_u:system_r:container_t:s0:c1,c2",
            selinux_mount_label="system_u:object_r:container_file_t:s0:c1,c2",
            masked_paths=("/sys/devices/system/cpu/cpu0/thermal_throttle",),
        ),
    ),
    "read-only-without-tmpfs": (container(security=Security(read_only=True, read_only_tmpfs=False)), inputs()),
    "privileged": (
        container(security=Security(privileged=True, no_new_privileges=False)),
        inputs(devices=(FUSE,), seccomp={"defaultAction": "SCMP_ACT_ERRNO"}, apparmor_profile="containers-default"),
    ),
    "user-namespace": (container(network=Network(mode="private")), inputs(**MAPPED, devices=(FUSE,))),
    "user-namespace-on-host-network": (container(), inputs(**MAPPED)),
    "host-namespaces": (container(security=Security(pid="host", ipc="host", uts="host")), inputs()),
    "joined-namespaces": (
        container(network=Network(mode="container:db")),
        inputs(network_namespace="/proc/12/ns/net", ipc_namespace="/proc/12/ns/ipc", pid_namespace="/proc/12/ns/pid",
               uts_namespace="/proc/12/ns/uts"),
    ),
    "rootless": (
        container(network=Network(mode="private")),
        inputs(rootless=True, uid_mappings=(IdMapping(0, 1000, 1),), gid_mappings=(IdMapping(0, 1000, 1),),
               devices=(FUSE,)),
    ),
    "limits": (
        container(
            resources=Resources(limits={"nofile": (1024, 4096), "core": (0, -1)}, oom_score_adjust=-100),
            security=Security(sysctls={"net.core.somaxconn": "1024"}, devices=("/dev/fuse",)),
            network=Network(mode="private"),
            annotations={"com.example.tier": "front", "org.systemd.property.MemoryMax": "1", "run.oci.handler": "x"},
        ),
        inputs(devices=(FUSE,)),
    ),
    "no-cgroups": (container(cgroup=Cgroup(mode=CgroupMode.DISABLED)), inputs(cgroup_namespace=False)),
}  # fmt: skip


def env(built: dict[str, Any]) -> dict[str, str]:
    return dict(item.split("=", 1) for item in built["process"]["env"])


def mount(built: dict[str, Any], destination: str) -> dict[str, Any]:
    found = [m for m in built["mounts"] if m["destination"] == destination]
    assert len(found) == 1
    return dict(found[0])


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    text = json.dumps(spec.build(*CASES[name]), indent=1) + "\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("CLEAT_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_no_golden_file_without_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(CASES)


@pytest.mark.parametrize("name", [name for name in CASES if name != "privileged"])
def test_never_weaker_than_podman(name: str) -> None:
    """What an unprivileged container of podman 5.4 has, each of ours has too."""
    built = spec.build(*CASES[name])
    linux = built["linux"]
    if name != "hardened":
        assert {"/proc/acpi", "/proc/kcore", "/proc/keys", "/sys/firmware", "/proc/scsi"} <= set(linux["maskedPaths"])
    assert {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"} <= set(linux["readonlyPaths"])
    assert built["process"]["noNewPrivileges"]
    assert {ns["type"] for ns in linux["namespaces"]} >= {"mount"}
    assert "ro" in mount(built, "/sys")["options"]
    assert "ro" in mount(built, "/sys/fs/cgroup")["options"]
    if name not in {"rootless", "no-cgroups"}:
        assert linux["resources"]["devices"][0] == {"allow": False, "access": "rwm"}


@pytest.mark.parametrize("name", CASES)
def test_inheritable_and_ambient_are_empty(name: str) -> None:
    sets = spec.build(*CASES[name])["process"]["capabilities"]
    assert sets["inheritable"] == []
    assert sets["ambient"] == []


@pytest.mark.parametrize("name", CASES)
def test_parents_are_mounted_before_children(name: str) -> None:
    seen: list[str] = []
    for one in spec.build(*CASES[name])["mounts"]:
        assert not any(earlier.startswith(one["destination"].rstrip("/") + "/") for earlier in seen)
        seen.append(one["destination"])


@pytest.mark.parametrize("name", CASES)
def test_results_share_nothing(name: str) -> None:
    one, two = spec.build(*CASES[name]), spec.build(*CASES[name])
    before = copy.deepcopy(two)
    one["process"]["env"].append("LEAK=1")
    one["linux"].setdefault("seccomp", {})["defaultAction"] = "SCMP_ACT_ALLOW"
    for m in one["mounts"]:
        m["options"].append("suid")
    assert two == before
    assert spec.build(*CASES[name]) == before


def test_sockets_are_announced_to_pid_1() -> None:
    built = spec.build(*CASES["handed-over"])
    assert env(built)["LISTEN_FDS"] == "2"
    assert env(built)["LISTEN_PID"] == "1"
    assert env(built)["LISTEN_FDNAMES"] == "http:admin"


@pytest.mark.parametrize("security", [Security(pid="host"), Security(pid="container:db")])
def test_sockets_need_a_pid_namespace(security: Security) -> None:
    with pytest.raises(InvalidArgument, match=r"security\.pid"):
        spec.build(container(security=security), inputs(listen_fds=1))


def test_socket_names_must_fit() -> None:
    with pytest.raises(InvalidArgument, match="1 fd names for 2"):
        spec.build(container(), inputs(listen_fds=2, listen_fdnames=("a",)))


def test_the_agents_promises_cannot_be_overridden() -> None:
    wanted = {"LISTEN_PID": "7", "NOTIFY_SOCKET": "/evil", "CREDENTIALS_DIRECTORY": "/evil"}
    image = ImageConfig(cmd=("x",), env=wanted)
    built = spec.build(
        container(environment=wanted),
        inputs(image=image, listen_fds=1, notify_socket_dir="/n", credentials_dir="/c"),
    )
    assert env(built)["LISTEN_PID"] == "1"
    assert env(built)["NOTIFY_SOCKET"] == "/run/notify/notify.sock"
    assert env(built)["CREDENTIALS_DIRECTORY"] == "/run/credentials"


def test_the_agents_mounts_win_and_lie_above_a_tmpfs() -> None:
    theirs = {"destination": "/run/notify/", "type": "bind", "source": "/evil", "options": ["bind"]}
    built = spec.build(
        container(security=Security(read_only=True)), inputs(notify_socket_dir="/n", extra_mounts=(theirs,))
    )
    assert mount(built, "/run/notify")["source"] == "/n"
    assert "ro" in mount(built, "/run/notify")["options"]
    order = [m["destination"] for m in built["mounts"]]
    assert order.index("/run") < order.index("/run/notify")


def test_a_mount_of_the_definition_takes_a_defaults_place() -> None:
    theirs = {"destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs", "options": ["size=1G"]}
    built = spec.build(container(), inputs(extra_mounts=(theirs,)))
    assert mount(built, "/dev/shm")["options"] == ["size=1G"]


def test_no_command_is_an_error() -> None:
    with pytest.raises(InvalidArgument, match="no command"):
        spec.build(container(command=()), inputs())


@pytest.mark.parametrize("name", ["", "A=B", "A\0B"])
def test_variables_that_cannot_be_set_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="environment"):
        spec.build(container(environment={name: "x"}), inputs())


@pytest.mark.parametrize(
    ("sysctls", "keys"),
    [
        ({"kernel.core_pattern": "|/bin/x"}, {}),
        ({"kernel.shm_rmid_forced": "1\nkernel.core_pattern=x"}, {}),
        ({"net/ipv4/../../kernel": "1"}, {}),
        ({"net.core.somaxconn": "1"}, {}),
        ({"kernel.msgmax": "1"}, {"ipc": "host"}),
        ({"kernel.domainname": "x"}, {"uts": "host"}),
        ({"vm.swappiness": "1"}, {}),
    ],
)
def test_sysctls_of_the_host_are_refused(sysctls: dict[str, str], keys: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=r"security\.sysctls"):
        spec.build(container(security=Security(sysctls=sysctls, **keys)), inputs())


def test_annotations_that_runtimes_act_on_are_dropped_and_named() -> None:
    wanted = {
        "com.example.a": "1", "org.systemd.property.ExecStart": "x", "run.oci.hooks.stderr": "x", "io.podman.x": "1",
        "org.criu.config": "x", "krun.ram_mib": "1", "module.wasm.image/variant": "compat",
        "io.kubernetes.cri.container-type": "x",
    }  # fmt: skip
    built = spec.build(container(annotations=wanted), inputs())
    assert built["annotations"] == {"com.example.a": "1"}
    assert set(spec.dropped_annotations(wanted)) == set(wanted) - {"com.example.a"}


@pytest.mark.parametrize("mode", ["container:db", "ns:/run/netns/x"])
def test_a_namespace_to_join_is_never_replaced_by_a_new_one(mode: str) -> None:
    with pytest.raises(InvalidArgument, match="was not found"):
        spec.build(container(network=Network(mode=mode)), inputs())


@pytest.mark.parametrize(
    ("unmasked", "shown"),
    [
        ("/proc/acpi", {"/proc/acpi"}),
        ("/proc/acpi/", {"/proc/acpi"}),
        ("/proc/timer_*", {"/proc/timer_list", "/proc/timer_stats"}),
        ("/*", set()),
        ("", set()),
    ],
)
def test_unmasking(unmasked: str, shown: set[str]) -> None:
    default = spec.build(container(), inputs())["linux"]["maskedPaths"]
    found = spec.build(container(security=Security(unmasked_paths=(unmasked,))), inputs())["linux"]["maskedPaths"]
    assert set(default) - set(found) == shown


def test_unmasking_all_leaves_what_is_asked_for() -> None:
    security = Security(unmasked_paths=("all",), masked_paths=("/proc/x",))
    linux = spec.build(container(security=security), inputs())["linux"]
    assert linux["maskedPaths"] == ["/proc/x"]
    assert "readonlyPaths" not in linux


def test_labels_do_not_become_annotations() -> None:
    assert "annotations" not in spec.build(container(labels={"run.oci.handler": "x"}), inputs())


BUNDLE: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {"args": ["/app"], "env": ["A=1", "LISTEN_FDS=9"], "cwd": "/", "terminal": True},
    "root": {"path": "rootfs"},
    "hooks": {"prestart": [{"path": "/usr/bin/hook"}]},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/data", "type": "bind", "source": "data", "options": ["rbind"]},
    ],
    "annotations": {"org.systemd.property.Delegate": "true", "com.example": "1"},
    "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}], "cgroupsPath": "/elsewhere"},
}


def from_bundle(config: Any, **keys: Any) -> dict[str, Any]:
    own = Container(name="b", bundle="/srv/b", environment={"B": "2"})
    return spec.from_bundle(config, own, inputs(root_path="/srv/b/rootfs", **keys))


def test_a_bundle_is_made_ours() -> None:
    before = copy.deepcopy(BUNDLE)
    built = from_bundle(BUNDLE, cgroups_path="/ours", listen_fds=1, notify_socket_dir="/n")
    assert before == BUNDLE
    assert built["linux"]["cgroupsPath"] == "/ours"
    assert built["root"]["path"] == "/srv/b/rootfs"
    assert env(built) == {
        "A": "1", "LISTEN_FDS": "1", "B": "2", "LISTEN_PID": "1", "NOTIFY_SOCKET": "/run/notify/notify.sock"
    }  # fmt: skip
    assert built["annotations"] == {"com.example": "1"}
    assert mount(built, "/data")["source"] == "/srv/b/data"
    assert mount(built, "/run/notify")["source"] == "/n"
    assert built["hooks"] == before["hooks"]
    assert built["process"]["terminal"]


def test_a_bundles_own_cgroup_is_never_used() -> None:
    assert "cgroupsPath" not in from_bundle(BUNDLE)["linux"]


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {**BUNDLE, "process": []},
        {**BUNDLE, "process": {"args": []}},
        {**BUNDLE, "root": None},
        {**BUNDLE, "linux": {}},
        {**BUNDLE, "linux": {"namespaces": "none"}},
        {**BUNDLE, "mounts": ["/proc"]},
        {**BUNDLE, "mounts": [{"type": "bind"}]},
        {**BUNDLE, "annotations": ["x"]},
        {**BUNDLE, "process": {"args": ["x"], "env": "A=1"}},
    ],
)
def test_a_malformed_bundle_is_an_error_with_its_key(broken: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"/srv/b/config\.json"):
        from_bundle(broken)


def test_a_bundle_on_the_hosts_pids_gets_no_sockets() -> None:
    config = {**BUNDLE, "linux": {"namespaces": [{"type": "mount"}]}}
    with pytest.raises(InvalidArgument, match=r"security\.pid"):
        from_bundle(config, listen_fds=1)


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
name = text.filter(lambda t: t and "=" not in t)


@given(st.dictionaries(name, text), st.lists(text.filter(bool), min_size=1), st.dictionaries(text, text))
def test_any_text_of_a_definition_survives_as_json(
    environment: dict[str, str], command: list[str], annotations: dict[str, str]
) -> None:
    built = spec.build(
        container(environment=environment, command=tuple(command), annotations=annotations, hostname="h"), inputs()
    )
    again = msgspec.json.decode(msgspec.json.encode(built))
    assert again == built
    assert again["process"]["args"] == command
    assert environment.items() <= env(again).items()
