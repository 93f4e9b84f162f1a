# SPDX-License-Identifier: Apache-2.0
"""Several files that make one table: drop-ins merged over a main file, and problems traced back to file and line."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from agent.definition.model import Diagnostic
from agent.definition.parse import KeyPath, Problem, show_path
from agent.definition.position import Position, Positions
from agent.definition.toml import SyntaxFault


class Source(NamedTuple):
    """A file's table and, for finding lines in it, its text."""

    file: str
    raw: dict[str, Any]
    text: str


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables are merged, everything else, lists too, is replaced. Neither argument is changed."""
    found = dict(below)
    for key, value in above.items():
        old = found.get(key)
        found[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return found


def merge_all(tables: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for table in tables:
        found = merge(found, table)
    return found


def has(raw: Mapping[str, Any], path: KeyPath) -> bool:
    """Whether a table has a value at this path."""
    value: Any = raw
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def origin(sources: Sequence[Source], path: KeyPath) -> Source | None:
    """The source that has the last word on a key: the last that sets it, else the last that sets its table."""
    last_first = tuple(sources)[::-1]
    for length in range(len(path), 0, -1):
        for source in last_first:
            if has(source.raw, path[:length]):
                return source
    return None


def diagnose(problems: Iterable[Problem], sources: Sequence[Source], container: str = "") -> list[Diagnostic]:
    """Problems as diagnostics, in the order of files and lines."""
    scans: dict[str, Positions] = {}
    found = [_diagnostic(problem, sources, container, scans) for problem in problems]
    order = {source.file: i for i, source in enumerate(sources)}
    return sorted(found, key=lambda d: (order.get(d.file, -1), d.line, d.column))


def _diagnostic(problem: Problem, sources: Sequence[Source], container: str, scans: dict[str, Positions]) -> Diagnostic:
    source = origin(sources, problem.path) or (sources[0] if sources else None)
    position = Position()
    if source is not None:
        if source.file not in scans:
            scans[source.file] = Positions(source.text)
        position = scans[source.file].find(problem.path)
    return Diagnostic(
        file=source.file if source else "",
        line=position.line,
        column=position.column,
        key=show_path(problem.path),
        reason=problem.reason,
        hint=problem.hint,
        container=container,
        warning=problem.warning,
    )


def syntax_diagnostic(file: str, fault: SyntaxFault, container: str = "") -> Diagnostic:
    return Diagnostic(
        file=file,
        line=fault.position.line,
        column=fault.position.column,
        reason=fault.reason,
        hint=fault.hint,
        container=container,
    )


def toml_files(folder: str) -> list[str]:
    """The *.toml files of a folder of drop-ins, in name order; none where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(".toml") and entry.name[0] != "."]
    except OSError:
        return []
    return [os.path.join(folder, name) for name in sorted(names)]
