# SPDX-License-Identifier: Apache-2.0
"""What the loader and the checks of definitions say about files, as `cleat check --json` prints it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from agent.definition import files, toml
from agent.definition.agent_config import load_config
from agent.definition.check import check, check_refused
from agent.definition.load import Loader, load_text
from agent.definition.model import Diagnostic
from agent.definition.position import Positions
from agent.paths import SYSTEM, for_user

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.definition.agent_config import AgentConfig
    from agent.definition.check import Locate
    from agent.definition.model import Loaded
    from agent.paths import Paths

_INSTANCE = "instance"  # a template is checked as this instance of it


def of_folders(*, user: bool) -> list[dict[str, Any]]:
    """All definitions where the agent looks for them, and its own settings."""
    paths = for_user() if user else SYSTEM
    config, found = load_config(paths)
    return _values([*found, *_loaded(Loader(paths, config).load(), config)])


def of_files(names: list[str], *, user: bool) -> list[dict[str, Any]]:
    """The files named; one in the agent's folders with all that belongs to it, any other one by itself."""
    paths = for_user() if user else SYSTEM
    config, found = load_config(paths)
    loader = Loader(paths, config)
    diagnostics: list[Diagnostic] = []
    for name in names:
        path = Path(name)
        if path.resolve() == paths.agent_config:
            diagnostics += found
        elif container := _defined_by(path, paths):
            diagnostics += _loaded(loader.load_one(container), config)
        else:
            diagnostics += _lone(name, config, paths)
    return _values(diagnostics)


def _defined_by(path: Path, paths: Paths) -> str:
    """The container that a definition or drop-in in one of the agent's folders is for, else ""."""
    place = path.absolute()
    if place.parent.suffixes[-2:] == [".toml", ".d"]:
        place = place.parent.with_suffix("")
    return _name(place) if place.parent in paths.definition_folders and place.suffix == ".toml" else ""


def _name(path: Path) -> str:
    return path.stem + _INSTANCE if path.stem.endswith("@") else path.stem


def _loaded(loaded: Loaded, config: AgentConfig, locate: Locate | None = None) -> list[Diagnostic]:
    on_this_host = [diagnostic for each in loaded.definitions.values() for diagnostic in check(each, config, locate)]
    on_this_host += [diagnostic for each in loaded.refused for diagnostic in check_refused(each, config, locate)]
    return [*loaded.diagnostics, *on_this_host]


def _lone(name: str, config: AgentConfig, paths: Paths) -> list[Diagnostic]:
    """A file that the agent does not read where it is, or with "-" what comes from stdin."""
    try:
        content = sys.stdin.buffer.read(toml.SIZE_MAX) if name == "-" else files.read(name, toml.SIZE_MAX)[0]
        text = content.decode()
    except files.Unusable as error:
        return [Diagnostic(file=name, reason=error.reason, hint=error.hint)]
    except UnicodeDecodeError:
        return [Diagnostic(file=name, reason="is not UTF-8", hint="save it as UTF-8")]
    container = "stdin" if name == "-" else _name(Path(name))
    positions = Positions(text)
    loaded = load_text(text, container, name, paths=paths)
    return _loaded(loaded, config, lambda path: (name, positions.find(path)))


def _values(diagnostics: Iterable[Diagnostic]) -> list[dict[str, Any]]:
    """Each once, by file and line."""
    ordered = sorted(dict.fromkeys(diagnostics), key=lambda each: (each.file, each.line, each.column))
    values: list[dict[str, Any]] = msgspec.to_builtins(ordered)
    return values
