# SPDX-License-Identifier: Apache-2.0
"""Images' own wishes: read without trust, and overridden as podman does."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.definition.model import Container
from agent.errors import InvalidArgument
from agent.oci.image_config import HealthCheck, ImageConfig, from_json, merge

IMAGE = ImageConfig(entrypoint=("/entry",), cmd=("serve",), env={"A": "image", "B": "image"}, user="app",
                    working_dir="/srv")  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "args"),
    [
        ({}, ("/entry", "serve")),
        ({"command": ("other",)}, ("/entry", "other")),
        ({"entrypoint": ("/mine",)}, ("/mine",)),
        ({"entrypoint": ("/mine",), "command": ("x",)}, ("/mine", "x")),
        ({"entrypoint": ()}, ("serve",)),
        ({"entrypoint": ("",), "command": ("x",)}, ("x",)),
    ],
)
def test_entrypoint_and_command(keys: dict[str, Any], args: tuple[str, ...]) -> None:
    assert merge(Container(name="x", **keys), IMAGE).args == args


def test_the_definition_wins_over_the_image() -> None:
    merged = merge(
        Container(name="x", environment={"A": "mine"}, user="0", working_directory="/w"), IMAGE
    )  # fmt: skip
    assert merged.env == {"A": "mine", "B": "image"}
    assert (merged.user, merged.working_directory) == ("0", "/w")
    own = merge(Container(name="x"), IMAGE)
    assert (own.user, own.working_directory) == ("app", "/srv")


def test_without_an_image() -> None:
    merged = merge(Container(name="x", command=("/a",)), None)
    assert (merged.args, merged.user, merged.working_directory) == (("/a",), "", "/")


def test_nothing_to_run() -> None:
    with pytest.raises(InvalidArgument, match="no command"):
        merge(Container(name="x"), ImageConfig())


def test_reading_a_config() -> None:
    found = from_json(
        {
            "Entrypoint": ["/e"], "Cmd": ["c"], "Env": ["A=1", "B=x=y", "C", "=z"], "User": "u", "WorkingDir": "/w",
            "StopSignal": "SIGQUIT", "Volumes": {"/b": {}, "/a": {}}, "ExposedPorts": {"80/tcp": {}},
            "Labels": {"l": "1", "n": 2},
            "Healthcheck": {"Test": ["CMD-SHELL", "curl x"], "Interval": 5_000_000_000, "Retries": 3},
        }
    )  # fmt: skip
    assert found == ImageConfig(
        entrypoint=("/e",), cmd=("c",), env={"A": "1", "B": "x=y", "C": ""}, user="u", working_dir="/w",
        stop_signal="SIGQUIT", volumes=("/a", "/b"), exposed_ports=("80/tcp",), labels={"l": "1"},
        healthcheck=HealthCheck(test=("CMD-SHELL", "curl x"), interval_sec=5.0, retries=3),
    )  # fmt: skip
    assert found.healthcheck is not None
    assert found.healthcheck.command == ("/bin/sh", "-c", "curl x")


@pytest.mark.parametrize(
    ("test", "command"), [(("NONE",), ()), (("CMD", "a", "b"), ("a", "b")), ((), ()), (("CMD-SHELL",), ())]
)
def test_health_commands(test: tuple[str, ...], command: tuple[str, ...]) -> None:
    assert HealthCheck(test=test).command == command


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("SIGQUIT", 3), ("quit", 3), ("15", 15), ("SIGRTMIN+3", signal.SIGRTMIN + 3), ("RTMIN", signal.SIGRTMIN),
        ("", 0), ("SIGNOPE", 0), ("999", 0), ("0", 0), ("SIGRTMIN+99", 0), ("KILL+1", 0), ("_DFL", 0),
        ("\u0661\u0665", 0),
        ("-9", 0),
    ],
)  # fmt: skip
def test_stop_signals(name: str, number: int) -> None:
    assert ImageConfig(stop_signal=name).stop_signal_number == number


def test_a_command_is_never_shortened() -> None:
    assert from_json({"Cmd": ["rm", 5, "/"], "Entrypoint": ["a", "b\0c"]}) == ImageConfig()


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
KEYS = ["Entrypoint", "Cmd", "Env", "User", "WorkingDir", "StopSignal", "Volumes", "ExposedPorts", "Labels",
        "Healthcheck"]  # fmt: skip


@given(json | st.dictionaries(st.sampled_from(KEYS), json))
def test_any_json_is_read_without_an_exception(value: Any) -> None:
    found = from_json(value)
    assert 0 <= found.stop_signal_number <= signal.SIGRTMAX
    assert all("\0" not in text for text in found.entrypoint + found.cmd)
