# SPDX-License-Identifier: Apache-2.0
"""An image's own wishes (OCI image spec, config.md; Docker's HEALTHCHECK) and how definitions override them.

The JSON comes from a registry: every field is read by type, capped, and ignored when it is something else.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

import msgspec

from agent.definition.model import Container
from agent.errors import InvalidArgument

_MAX_ITEMS = 4096
_MAX_TEXT = 131072  # MAX_ARG_STRLEN of execve(2): a longer argument or variable cannot be passed anyway
_NANOSECONDS = 1_000_000_000


class HealthCheck(msgspec.Struct, frozen=True, kw_only=True):
    """`test` as in the image: ("NONE",), ("CMD", argv...), ("CMD-SHELL", line). Seconds, 0 = not said."""

    test: tuple[str, ...] = ()
    interval_sec: float = 0.0
    timeout_sec: float = 0.0
    start_period_sec: float = 0.0
    start_interval_sec: float = 0.0
    retries: int = 0

    @property
    def command(self) -> tuple[str, ...]:
        """The argv to run, empty when there is none."""
        match self.test:
            case ("CMD", *argv):
                return tuple(argv)
            case ("CMD-SHELL", line, *_):
                return ("/bin/sh", "-c", line)
            case _:
                return ()


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The `config` object of an image configuration. `exposed_ports` as "80/tcp"."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: dict[str, str] = {}
    user: str = ""
    working_dir: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    healthcheck: HealthCheck | None = None

    @property
    def stop_signal_number(self) -> int:
        """`stop_signal` ("SIGQUIT", "QUIT", "3", "SIGRTMIN+3") as a number; 0 when unset or unknown."""
        return _signal_number(self.stop_signal)


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """What a definition and its image together want to run. `user` is still text: names are the rootfs's."""

    args: tuple[str, ...]
    env: dict[str, str]
    user: str
    working_directory: str


def merge(container: Container, image: ImageConfig | None) -> Process:
    """podman-run(1)'s rules: a definition's entrypoint drops the image's cmd, its command replaces it.

    `entrypoint = []` or `[""]` empties the image's entrypoint. Raises InvalidArgument when nothing is left.
    """
    image = image or ImageConfig()
    args = _arguments(container, image)
    if not args:
        raise InvalidArgument(
            "there is no command to run",
            container=container.name,
            key="command",
            why="neither the definition nor its image names one",
            hint='set command = ["/path/to/program"]',
        )
    return Process(
        args=args,
        env={**image.env, **container.environment},
        user=container.user or image.user,
        working_directory=_absolute(container.working_directory or image.working_dir),
    )


def _arguments(container: Container, image: ImageConfig) -> tuple[str, ...]:
    own = container.entrypoint
    entrypoint = image.entrypoint if own is None else own
    if entrypoint == ("",):
        entrypoint = ()
    command = container.command or (() if own else image.cmd)
    return entrypoint + command


def _absolute(path: str) -> str:
    return path if path.startswith("/") else "/" + path


def from_json(config: object) -> ImageConfig:
    """The `config` object of an image's configuration; foreign types and over-long texts are left out."""
    found = config if isinstance(config, Mapping) else {}
    return ImageConfig(
        entrypoint=_texts(found.get("Entrypoint")),
        cmd=_texts(found.get("Cmd")),
        env=_environment(found.get("Env")),
        user=_text(found.get("User")),
        working_dir=_text(found.get("WorkingDir")),
        stop_signal=_text(found.get("StopSignal")),
        volumes=tuple(sorted(_keys(found.get("Volumes")))),
        exposed_ports=tuple(sorted(_keys(found.get("ExposedPorts")))),
        labels=_labels(found.get("Labels")),
        healthcheck=_healthcheck(found.get("Healthcheck")),
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) and len(value) <= _MAX_TEXT and "\0" not in value else ""


def _texts(value: object) -> tuple[str, ...]:
    """A list of strings as a whole, or nothing: with one argument left out it would be another command."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or len(value) > _MAX_ITEMS:
        return ()
    fine = all(isinstance(item, str) and _text(item) == item for item in value)
    return tuple(value) if fine else ()


def _environment(value: object) -> dict[str, str]:
    pairs = (item.partition("=") for item in _texts(value))
    return {name: text for name, _, text in pairs if name}


def _keys(value: object) -> tuple[str, ...]:
    return _texts(list(value)) if isinstance(value, Mapping) else ()


def _labels(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping) or len(value) > _MAX_ITEMS:
        return {}
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, str) and _text(v) == v}


def _healthcheck(value: object) -> HealthCheck | None:
    if not isinstance(value, Mapping):
        return None
    return HealthCheck(
        test=_texts(value.get("Test")),
        interval_sec=_seconds(value, "Interval"),
        timeout_sec=_seconds(value, "Timeout"),
        start_period_sec=_seconds(value, "StartPeriod"),
        start_interval_sec=_seconds(value, "StartInterval"),
        retries=_count(value.get("Retries")),
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else 0


def _seconds(value: Mapping[str, object], key: str) -> float:
    return _count(value.get(key)) / _NANOSECONDS


def _signal_number(name: str) -> int:
    text = name.upper().removeprefix("SIG") if name.isascii() else ""
    base, plus, offset = text.partition("+")
    if base.isdecimal() and not plus:
        number = int(base) if len(base) < 4 else 0
    elif base.isalnum() and (not plus or (base == "RTMIN" and offset.isdecimal() and len(offset) < 3)):
        number = int(getattr(signal, f"SIG{base}", 0)) + int(offset or 0)
    else:
        return 0
    return number if 0 < number <= signal.SIGRTMAX else 0
