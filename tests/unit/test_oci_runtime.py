# SPDX-License-Identifier: Apache-2.0
"""Runtimes: where they are found, their command lines, and what their words mean (texts of crun 1.21, runc 1.1.15)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import (
    CleatError,
    CommandNotExecutable,
    CommandNotFound,
    InvalidState,
    RuntimeFailed,
    Unsupported,
)
from agent.oci import features
from agent.oci.failures import error_from_text, read_oci_log, relevant_line
from agent.oci.runtime import CheckpointOptions, Runtime

CRUN = Runtime(name="crun", path="/usr/bin/crun", root="/run/cleat/crun", args=("--debug",))
START = ["/usr/bin/crun", "--root", "/run/cleat/crun", "--debug"]


def executable(path: Path, mode: int = 0o755) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return str(path)


def find(name: str, candidates: list[str], search_path: str) -> Runtime:
    return Runtime.find(name, candidates, search_path, root="/run/x")


def test_the_first_executable_candidate_is_taken(tmp_path: Path) -> None:
    (tmp_path / "folder/crun").mkdir(parents=True)
    plain = executable(tmp_path / "plain/crun", 0o644)
    good = executable(tmp_path / "good/crun")
    other = executable(tmp_path / "other/crun")
    found = find("crun", [str(tmp_path / "none"), str(tmp_path / "folder/crun"), plain, good, other], "")
    assert found.path == good


def test_the_search_path_comes_last(tmp_path: Path) -> None:
    executable(tmp_path / "bin/crun")
    assert find("crun", ["/none/crun"], f"relative::{tmp_path}/none:{tmp_path}/bin").path == f"{tmp_path}/bin/crun"


def test_a_path_is_itself(tmp_path: Path) -> None:
    path = executable(tmp_path / "my-runc")
    found = find(path, [executable(tmp_path / "else")], str(tmp_path))
    assert (found.name, found.path) == ("my-runc", path)


def test_every_place_that_was_tried_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"/a/crun, /b/crun, /c/crun .*install crun") as caught:
        find("crun", ["/a/crun", "/b/crun"], "/c:/b")
    assert caught.value.key == "runtime.name"


@pytest.mark.parametrize(
    ("argv", "tail"),
    [
        (CRUN.start_argv("id"), ["start", "id"]),
        (CRUN.state_argv("id"), ["state", "id"]),
        (CRUN.kill_argv("id", 15), ["kill", "id", "15"]),
        (CRUN.kill_argv("id", 9, all_processes=True), ["kill", "--all", "id", "9"]),
        (CRUN.delete_argv("id"), ["delete", "id"]),
        (CRUN.delete_argv("id", force=True), ["delete", "--force", "id"]),
        (
            CRUN.checkpoint_argv("id", CheckpointOptions(image_path="/i", work_path="/w")),
            ["checkpoint", "--image-path", "/i", "--work-path", "/w", "id"],
        ),
        (
            CRUN.checkpoint_argv(
                "id",
                CheckpointOptions(
                    image_path="/i", work_path="/w", leave_running=True, tcp_established=True, file_locks=True
                ),
            ),
            ["checkpoint", "--image-path", "/i", "--work-path", "/w", "--leave-running", "--tcp-established",
             "--file-locks", "id"],
        ),
        (
            CRUN.checkpoint_argv("id", CheckpointOptions(image_path="/i", work_path="/w", network_lock="nftables")),
            ["checkpoint", "--image-path", "/i", "--work-path", "/w", "--network-lock", "nftables", "id"],
        ),
    ],
)  # fmt: skip
def test_command_lines(argv: list[str], tail: list[str]) -> None:
    assert argv == START + tail


def test_the_environment_is_made_from_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LD_PRELOAD"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    runtime = find(executable(tmp_path / "crun"), [], "")
    assert set(runtime.environment()) == {"PATH", "LC_CTYPE", "XDG_RUNTIME_DIR"}
    assert set(CRUN.environment()) == {"PATH", "LC_CTYPE"}


CASES: list[tuple[str, type[CleatError], str]] = [
    ("executable file `nosuch` not found in $PATH: No such file or directory", CommandNotFound, "command"),
    ("executable file `/no/such` not found: No such file or directory", CommandNotFound, "command"),
    (
        r'time="2026-11-23T13:04:32Z" level=error msg="failed: exec: \"nosuch\": executable file not found in $PATH"',
        CommandNotFound,
        "command",
    ),
    (
        'unable to start container process: exec: "/no/such": stat /no/such: no such file or directory',
        CommandNotFound,
        "command",
    ),
    (
        "exec container process (missing dynamic library?) `/script`: No such file or directory",
        CommandNotFound,
        "command",
    ),
    ("exec container process `/garb`: Exec format error", CommandNotExecutable, "command"),
    ("exec /garb: exec format error", CommandNotExecutable, "command"),
    ("the path `/f` exists but it is not executable: Operation not permitted", CommandNotExecutable, "command"),
    ("the path `/dir` is not a regular file: Operation not permitted", CommandNotExecutable, "command"),
    ('unable to start container process: exec: "/notexec": permission denied', CommandNotExecutable, "command"),
    ('unable to start container process: exec: "/dir": is a directory', CommandNotExecutable, "command"),
    ("chdir to `/nosuch`: No such file or directory", CommandNotFound, "working_directory"),
    ('chdir to cwd ("/x") set in config.json failed: permission denied', CommandNotExecutable, "working_directory"),
    (
        "controller `pids` is not available under /sys/fs/cgroup/x/cgroup.controllers",
        Unsupported,
        "resources",
    ),
    (
        "error setting cgroup config: openat2 /sys/fs/cgroup/x803/pids.max: no such file or directory",
        Unsupported,
        "resources",
    ),
    (
        'error mounting "sysfs" to rootfs at "/sys": mount sysfs:/sys: operation not permitted',
        Unsupported,
        "network.mode",
    ),
    ("cannot stat `/nosrc`: No such file or directory", RuntimeFailed, "mount"),
    (
        'error mounting "/nosrc" to rootfs: mount destination: bind mount source stat: stat /nosrc: no such file',
        RuntimeFailed,
        "mount",
    ),
    ("mount `n` to `x`: No such device", RuntimeFailed, "mount"),
    ("AppArmor is not initialized correctly", Unsupported, "security.apparmor_profile"),
    ("write to `/proc/self/attr/keycreate`: Invalid argument", Unsupported, "security.selinux_type"),
    ("selinux label is specified in config, but selinux is disabled", Unsupported, "security.selinux_type"),
    ("invalid seccomp action `SCMP_ACT_FOO`", RuntimeFailed, "security.seccomp_profile"),
    ("write to `/proc/self/oom_score_adj`: Permission denied", RuntimeFailed, "resources.oom_score_adjust"),
    ("invalid rlimit `RLIMIT_FOO`", RuntimeFailed, "resources"),
    ("open `/proc/sys/net/ipv4/nope`: No such file or directory", RuntimeFailed, "security.sysctls"),
    ("open `/run/netns/none`: No such file or directory", RuntimeFailed, ""),
    ("crun: unrecognized option '--nosuch'\nTry `crun --help' or so", Unsupported, "runtime"),
    ("Incorrect Usage. flag provided but not defined: -nosuch\n\nNAME:\n   runc", Unsupported, "runtime"),
    ("error opening file `/run/crun/zz/status`: No such file or directory", InvalidState, ""),
    ("cannot open directory `/run/h3rt/zz`: No such file or directory", InvalidState, ""),
    ('time="2026-11-23T12:57:16Z" level=error msg="container does not exist"', InvalidState, ""),
    ("container not running: No such process", InvalidState, ""),
    ("container `ex1` is not running", InvalidState, ""),
    ("cannot start a container that has stopped", InvalidState, ""),
    ("container not paused", InvalidState, ""),
    ("open `/nowhere`: No such file or directory", CommandNotFound, ""),
    ("something: Operation not permitted", CommandNotExecutable, ""),
    ("what nobody has said before", RuntimeFailed, ""),
]


@pytest.mark.parametrize(("text", "kind", "key"), CASES)
def test_what_runtimes_say(text: str, kind: type[CleatError], key: str) -> None:
    error = error_from_text(text, "web")
    assert type(error) is kind
    assert error.key == key
    assert error.container == "web"
    assert error.why
    assert "\n" not in str(error)
    assert error.why.split("`")[0].strip() in text.replace("\\", "")


LOG = """{"level":"warning","msg":"ignoring unknown or unavailable capabilities: [CAP_FOO]"}
{"level":"error","msg":"first","time":"2026-11-23T12:57:14Z"}
{"error":"openat2 /sys/fs/cgroup/x/memory.events: no such file or directory","level":"warning","msg":"unable to get"}
{"level":"error","msg":"exec: \\"nosuch\\": executable file not found in $PATH"}
not json
{"level":"error"}
["error"]
"""


def test_the_last_error_of_a_log(tmp_path: Path) -> None:
    (tmp_path / "oci-log").write_text(LOG)
    assert read_oci_log(tmp_path / "oci-log") == 'exec: "nosuch": executable file not found in $PATH'


def test_runcs_first_stage_says_why() -> None:
    text = (
        '{"level":"fatal","msg":"nsexec[1572]: failed to update /proc/self/oom_score_adj: Invalid argument"}\n'
        '{"level":"error","msg":"can\'t get final child\'s PID from pipe: EOF"}\n'
    )
    assert error_from_text(text).key == "resources.oom_score_adjust"


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"level":"warning","msg":"x"}\n', b"\xff\xfe", b'{"level":"err'])
def test_a_log_without_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "oci-log").write_bytes(content)
    assert read_oci_log(tmp_path / "oci-log") is None
    assert read_oci_log(tmp_path / "none") is None


def test_silence_is_told_with_the_exit_code() -> None:
    assert "exit code 3" in str(error_from_text("", "web", exit_code=3))
    assert "no reason" in str(error_from_text(" \n"))


def test_what_a_container_could_write_is_cleaned_and_capped() -> None:
    error = error_from_text("\x1b[2Jevil\r\n" + "x" * 100_000)
    assert len(error.why) <= 1001
    assert error.why.isprintable()


@given(st.text())
def test_any_text_makes_an_error(text: str) -> None:
    line = relevant_line(text)
    assert line.isprintable()
    assert error_from_text(text).why


@pytest.mark.parametrize(
    ("text", "version"), [("1.21", (1, 21)), ("1.1.15+ds1", (1, 1, 15)), ("1.3.0-rc.1", (1, 3, 0)), ("x", ())]
)
def test_versions(text: str, version: tuple[int, ...]) -> None:
    assert features.parse_version(text) == version


@pytest.mark.parametrize(
    ("kind", "version", "count"),
    [
        ("crun", (1, 21), 1), ("crun", (1, 28), 0), ("crun", (1, 4, 4), 1), ("runc", (1, 1, 15), 1),
        ("runc", (1, 1, 12), 1), ("runc", (1, 2, 8), 0), ("runc", (1, 3, 0), 1), ("runc", (1, 3, 3), 0),
        ("runc", (1, 4), 0), ("youki", (0, 1), 0),
    ],
)  # fmt: skip
def test_versions_with_known_holes_warn(kind: str, version: tuple[int, ...], count: int) -> None:
    warnings = features.judge_version(kind, version)
    assert len(warnings) == count
    assert all("CVE-" in text for text in warnings)


@pytest.mark.parametrize(("kind", "version"), [("runc", (1, 1, 11)), ("crun", (1, 4, 3)), ("crun", (0, 20))])
def test_versions_that_let_containers_out_are_refused(kind: str, version: tuple[int, ...]) -> None:
    with pytest.raises(Unsupported, match="CVE-"):
        features.judge_version(kind, version)


def test_a_distribution_that_repairs_an_old_version_is_believed() -> None:
    assert not features.judge_version("runc", (1, 1, 5), "1.1.5+ds1-1+deb12u1")
    for build in ("1.1.5+ds1-1", "1.1.5+ds1-1+deb12u0", "v1.1.5-0-gf19387a6"):
        with pytest.raises(Unsupported, match="CVE-2024-21626"):
            features.judge_version("runc", (1, 1, 5), build)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({}, ""),
        ({"features": b'{"annotations": {"org.opencontainers.runc.checkpoint.enabled": "true"}}'}, ""),
        ({"features": b'{"annotations": {"org.opencontainers.runc.checkpoint.enabled": "false"}}'}, "without CRIU"),
        ({"features": b"[]"}, ""),
        ({"features": b'{"annotations": null}'}, ""),
        ({"knows_command": False}, "no checkpoint command"),
        ({"has_criu": False}, "criu is not installed"),
    ],
)
def test_why_there_are_no_checkpoints(answers: dict[str, Any], reason: str) -> None:
    known: dict[str, Any] = {"features": b"", "knows_command": True, "has_criu": True, **answers}
    assert reason in features.checkpoint_reason(known.pop("features"), **known)
    assert bool(reason) == bool(features.checkpoint_reason(answers.get("features", b""), **known))
