# SPDX-License-Identifier: Apache-2.0
"""cleat.toml: its keys, drop-ins, mistakes, and the sample that shows all defaults."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import msgspec
import pytest
import tomli

from agent.definition.agent_config import (
    RUNTIMES,
    VOCABULARY,
    AgentConfig,
    Defaults,
    LogLevel,
    Metrics,
    ServiceDefaults,
    load_config,
    parse_config,
    with_defaults,
)
from agent.definition.model import Restart, Service
from agent.definition.parse import Problems, readers
from agent.paths import Paths

SAMPLE = Path(__file__).parents[2] / "config/cleat.toml"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "etc/cleat.toml.d").mkdir(parents=True, mode=0o755)
    return Paths(config=tmp_path / "etc", runtime=tmp_path / "run", state=tmp_path / "lib", vendor=tmp_path / "usr")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    path.write_text(text)
    path.chmod(0o644)
    return path


def test_no_file_at_all(paths: Paths) -> None:
    assert load_config(paths) == (AgentConfig(), ())


def test_all_kinds_of_keys(paths: Paths) -> None:
    write(
        paths.agent_config,
        """
        default_runtime = "runc"
        log_level = "debug"
        log_size_max = "10M"
        create_timeout_sec = "2min"
        parallel_starts = 8
        conmon_environment = { A = 1 }
        [runtimes]
        kata = ["/opt/kata"]
        runc = ["/opt/runc"]
        [defaults.service]
        restart = "always"
        [metrics]
        listen = "127.0.0.1:9550"
        """,
    )
    config, diagnostics = load_config(paths)
    assert diagnostics == ()
    assert (config.default_runtime, config.log_level, config.log_size_max) == ("runc", LogLevel.DEBUG, 10 << 20)
    assert (config.create_timeout_sec, config.parallel_starts, config.conmon_environment) == (120.0, 8, {"A": "1"})
    assert config.runtimes == {"crun": RUNTIMES["crun"], "kata": ("/opt/kata",), "runc": ("/opt/runc",)}
    assert config.defaults.service.restart is Restart.ALWAYS
    assert config.metrics.listen == "127.0.0.1:9550"


def test_drop_ins(paths: Paths) -> None:
    write(paths.agent_config, "parallel_starts = 1\nwatch = true\n")
    write(paths.config / "cleat.toml.d/20.toml", "parallel_starts = 2\n")
    write(paths.vendor / "cleat.toml.d/20.toml", "parallel_starts = 9\n")
    write(paths.vendor / "cleat.toml.d/30.toml", 'log_level = "error"\n')
    config, diagnostics = load_config(paths)
    assert (config.parallel_starts, config.watch, config.log_level, diagnostics) == (2, True, LogLevel.ERROR, ())


def test_mistakes_keep_the_default_and_are_reported(paths: Paths) -> None:
    path = write(paths.agent_config, 'watsh = true\nparallel_starts = -1\ncreate_timeout_sec = "1min"\n')
    config, diagnostics = load_config(paths)
    assert (config.parallel_starts, config.create_timeout_sec) == (0, 60.0)
    assert [(d.file, d.line, d.key, d.hint) for d in diagnostics] == [
        (str(path), 1, "watsh", 'did you mean "watch"?'),
        (str(path), 2, "parallel_starts", "it is from 0 to 1024"),
    ]


@pytest.mark.parametrize("text", ["a = [\n", "\0", "[[[["])
def test_file_that_is_no_toml_is_left_out(paths: Paths, text: str) -> None:
    write(paths.agent_config, text)
    write(paths.config / "cleat.toml.d/a.toml", "watch = true\n")
    config, diagnostics = load_config(paths)
    assert config.watch
    assert len(diagnostics) == 1
    assert diagnostics[0].line == 1


def test_file_that_others_can_write_is_left_out(paths: Paths) -> None:
    write(paths.agent_config, "watch = true\n").chmod(0o666)
    config, diagnostics = load_config(paths)
    assert not config.watch
    assert "can be written by everybody" in diagnostics[0].reason


def test_vocabulary_is_its_own() -> None:
    problems = Problems(VOCABULARY)
    parse_config({"image": "x", "restart": "no", "listen": "80"}, problems)
    hints = [problem.hint for problem in problems]
    assert hints == ["", "", 'did you mean "listen" in [metrics]?']


def test_defaults_only_where_silent() -> None:
    config = AgentConfig(log_size_max=5, defaults=Defaults(service=ServiceDefaults(restart_sec=1.0)))
    assert with_defaults({}, config) == {"service": {"restart_sec": 1.0}}
    raw = {"service": {"restart_sec": "2s"}, "log": {"driver": "k8s-file"}}
    assert with_defaults(raw, config) == {
        "service": {"restart_sec": "2s"},
        "log": {"driver": "k8s-file", "size_max": 5},
    }
    assert with_defaults({"service": 3}, config) == {"service": 3}
    assert with_defaults(raw, AgentConfig()) == raw


def uncommented() -> str:
    lines = SAMPLE.read_text().splitlines()
    return "\n".join(re.sub(r"^#(?=\[|\w+ = )", "", line) for line in lines)


def test_sample_is_all_comments() -> None:
    assert tomli.loads(SAMPLE.read_text()) == {}


def test_sample_shows_every_key_at_its_default() -> None:
    raw = tomli.loads(uncommented())
    problems = Problems(VOCABULARY)
    config = parse_config(raw, problems)
    assert problems == []
    assert set(raw) == set(readers(AgentConfig))
    assert set(raw["defaults"]["service"]) == set(ServiceDefaults.__struct_fields__)
    assert set(raw["metrics"]) == set(Metrics.__struct_fields__)
    for name in ServiceDefaults.__struct_fields__:
        assert getattr(config.defaults.service, name) == getattr(Service(), name), name
    assert msgspec.structs.replace(config, defaults=Defaults()) == AgentConfig()


def test_service_defaults_have_the_types_of_the_service() -> None:
    ours, theirs = (typing.get_type_hints(kind, include_extras=True) for kind in (ServiceDefaults, Service))
    for name, hint in ours.items():
        assert typing.get_args(hint)[0] == theirs[name], name
