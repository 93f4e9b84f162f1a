# SPDX-License-Identifier: Apache-2.0
"""What a host lacks for a definition, on folders made for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.definition import check as check_module
from agent.definition.agent_config import AgentConfig
from agent.definition.check import available_controllers, check, check_refused, find_runtime
from agent.definition.load import load_text, parse_text
from agent.definition.model import Diagnostic


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AgentConfig:
    """A host with conmon, crun and a seccomp profile."""
    for name in ("conmon", "crun", "seccomp.json"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "rootfs").mkdir()
    monkeypatch.setattr(check_module, "SECCOMP_PROFILES", (str(tmp_path / "seccomp.json"),))
    return AgentConfig(conmon_path=(str(tmp_path / "conmon"),), runtimes={"crun": (str(tmp_path / "crun"),)})


def said(tmp_path: Path, config: AgentConfig, text: str) -> tuple[Diagnostic, ...]:
    source = tmp_path / "web.toml"
    if "bundle" not in text and "rootfs" not in text:
        text = f'rootfs = "{tmp_path}/rootfs"\ncommand = ["x"]\n{text}'
    source.write_text(text)
    definition, diagnostics = parse_text(text, "web", str(source))
    assert definition is not None, [str(d) for d in diagnostics]
    return check(definition, config)


def test_all_there(tmp_path: Path, config: AgentConfig) -> None:
    assert said(tmp_path, config, "") == ()


def test_position_and_container(tmp_path: Path, config: AgentConfig) -> None:
    (diagnostic,) = said(tmp_path, config, '[[mount]]\ntarget = "/a"\nsource = "/nowhere/data"\n')
    assert (diagnostic.file, diagnostic.line, diagnostic.column) == (str(tmp_path / "web.toml"), 5, 1)
    assert (diagnostic.container, diagnostic.key) == ("web", "mount[0].source")
    assert diagnostic.hint == "mkdir -p /nowhere/data"


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ('rootfs = "/nowhere"\ncommand = ["x"]\n', "rootfs", "/nowhere does not exist"),
        ('rootfs = "/dev/null"\ncommand = ["x"]\n', "rootfs", "is not a folder"),
        ('bundle = "/nowhere"\n', "bundle", "does not exist"),
        ('[runtime]\nname = "kata"\n', "runtime.name", 'the runtime "kata" is not installed'),
        ('[runtime]\nname = "/opt/none"\n', "runtime.name", "is not installed"),
        ('timezone = "Europe/Nowhere"\n', "timezone", "does not exist"),
        ('[log]\ndriver = "k8s-file"\npath = "/nowhere/log"\n', "log.path", "the folder /nowhere does not exist"),
        ('[security]\ndevices = ["/dev/nothing"]\n', "security.devices[0]", "does not exist"),
        ('[security]\nseccomp_profile = "/nowhere.json"\n', "security.seccomp_profile", "does not exist"),
        (
            '[[socket]]\nlisten_stream = "/a"\nsocket_user = "nobody_here"\n',
            "socket[0].socket_user",
            "there is no user",
        ),
        (
            '[[socket]]\nlisten_stream = "/a"\nsocket_group = "nobody_here"\n',
            "socket[0].socket_group",
            "there is no group",
        ),
        ('[[credential]]\nname = "a"\nload = "/nowhere"\n', "credential[0].load", "does not exist"),
        ('[network]\nmode = "ns:/run/netns/none"\n', "network.mode", "does not exist"),
    ],
)
def test_missing(tmp_path: Path, config: AgentConfig, text: str, key: str, words: str) -> None:
    if "update" in text:
        text = f'image = "docker.io/library/busybox"\n{text}'
        definition, _ = parse_text(text, "web", "web.toml")
        assert definition is not None
        (diagnostic,) = check(definition, config)
    else:
        (diagnostic,) = said(tmp_path, config, text)
    assert diagnostic.key == key
    assert words in diagnostic.reason
    assert diagnostic.hint or "folder" in diagnostic.reason


def test_no_conmon(tmp_path: Path, config: AgentConfig) -> None:
    (tmp_path / "conmon").chmod(0o644)
    (diagnostic,) = said(tmp_path, config, "")
    assert str(tmp_path / "conmon") in diagnostic.reason


def test_no_seccomp_profile(tmp_path: Path, config: AgentConfig) -> None:
    (tmp_path / "seccomp.json").unlink()
    (diagnostic,) = said(tmp_path, config, "")
    assert "containers-common" in diagnostic.hint
    assert said(tmp_path, config, '[security]\nseccomp_profile = "unconfined"\n') == ()
    assert said(tmp_path, config, "[security]\nprivileged = true\n") == ()


def test_runtime_by_path_and_name(tmp_path: Path, config: AgentConfig) -> None:
    assert find_runtime("crun", config) == str(tmp_path / "crun")
    assert find_runtime(str(tmp_path / "crun"), config) == str(tmp_path / "crun")
    assert find_runtime("env", config).endswith("/env")
    assert find_runtime("no-such-runtime", config) == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "has no ociVersion"),
        ('{"ociVersion": 1}', "has no ociVersion"),
        ('{"ociVersion": "1.0.2"}', ""),
    ],
)
def test_bundle(tmp_path: Path, config: AgentConfig, content: str | None, words: str) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir(mode=0o755)
    if content is not None:
        (bundle / "config.json").write_text(content)
        (bundle / "config.json").chmod(0o644)
    found = said(tmp_path, config, f'bundle = "{bundle}"\n')
    assert [words in d.reason for d in found] == ([True] if words else [])


def test_bundle_that_others_can_write(tmp_path: Path, config: AgentConfig) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "config.json").write_text('{"ociVersion": "1.0.2"}')
    bundle.chmod(0o777)
    (diagnostic,) = said(tmp_path, config, f'bundle = "{bundle}"\n')
    assert "can be written by everybody" in diagnostic.reason


def test_modes_of_credentials(tmp_path: Path, config: AgentConfig) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    text = f'[[credential]]\nname = "a"\nload = "{secret}"\n'
    for mode, warning in ((0o600, None), (0o640, None), (0o644, True), (0o620, False), (0o602, False)):
        secret.chmod(mode)
        assert [d.warning for d in said(tmp_path, config, text)] == ([] if warning is None else [warning])


def test_limits_without_controllers(tmp_path: Path, config: AgentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "available_controllers", lambda: frozenset({"memory"}))
    text = '[resources]\nmemory_max = "1G"\ntasks_max = 5\nip_accounting = true\nlimit_nofile = 5\n'
    (diagnostic,) = said(tmp_path, config, text)
    assert (diagnostic.key, diagnostic.line) == ("resources.tasks_max", 5)
    assert "no cgroup controller pids" in diagnostic.reason
    assert not diagnostic.warning


def test_available_controllers(tmp_path: Path) -> None:
    folder = tmp_path
    if os.geteuid() != 0:
        folder = tmp_path / f"user.slice/user-{os.getuid()}.slice/user@{os.getuid()}.service"
        folder.mkdir(parents=True)
    (folder / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    assert available_controllers(str(tmp_path)) == {"cpuset", "cpu", "io", "memory", "pids"}
    assert available_controllers(str(tmp_path / "none")) == frozenset()


@pytest.mark.parametrize(
    ("text", "key"), [('[network]\nmode = "bridge"\n', "network.mode"), ('[update]\nmode = "apply"\n', "update.mode")]
)
def test_what_this_version_does_not_do_is_refused(tmp_path: Path, config: AgentConfig, text: str, key: str) -> None:
    if "update" in text:
        text = f'image = "docker.io/library/busybox"\n{text}'
        definition, _ = parse_text(text, "web", "web.toml")
        assert definition is not None
        (diagnostic,) = check(definition, config)
    else:
        (diagnostic,) = said(tmp_path, config, text)
    assert diagnostic.key == key
    assert "this version" in diagnostic.reason
    assert diagnostic.hint


REFUSED = """
rootfs = "/nowhere"
comand = ["x"]
timezone = 7
[[mount]]
source = "/nowhere/a"
target = "relative"
[[mount]]
source = "/nowhere/b"
target = "/b"
[[socket]]
listen_stream = "x y"
[log]
driver = "k8s-file"
path = "/nowhere/log"
colour = true
"""


def test_what_can_be_read_of_a_refused_definition_is_checked_too(tmp_path: Path, config: AgentConfig) -> None:
    source = tmp_path / "web.toml"
    source.write_text(REFUSED)
    loaded = load_text(REFUSED, "web", str(source))
    assert not loaded.definitions
    (refused,) = loaded.refused
    found = {d.key: (d.line, d.reason) for d in check_refused(refused, config)}
    assert found == {
        "rootfs": (2, "/nowhere does not exist"),
        "mount[0].source": (6, "/nowhere/a does not exist"),
        "mount[1].source": (9, "/nowhere/b does not exist"),
        "log.path": (15, "the folder /nowhere does not exist"),
    }
    assert {"comand", "timezone", "mount[0].target", "log.colour"} <= {d.key for d in loaded.diagnostics}


def test_elements_that_cannot_be_told_apart_are_not_checked(tmp_path: Path, config: AgentConfig) -> None:
    text = f'rootfs = "{tmp_path}"\ncommand = ["x"]\n[security]\ndevices = [5, "/dev/nothing"]\n'
    (refused,) = load_text(text, "web", str(tmp_path / "web.toml")).refused
    assert check_refused(refused, config) == ()


def test_defaults_in_place_of_what_is_wrong_are_not_checked(tmp_path: Path) -> None:
    nothing = AgentConfig(conmon_path=(), runtimes={"crun": ("/nowhere/crun",)})
    text = f'rootfs = "{tmp_path}"\ncommand = ["x"]\n[runtime]\nname = 5\n'
    (refused,) = load_text(text, "web", str(tmp_path / "web.toml")).refused
    assert [d.key for d in check_refused(refused, nothing)] == []
