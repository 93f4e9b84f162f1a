# SPDX-License-Identifier: Apache-2.0
"""The rooms and who may know whom: imports point downwards only."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2] / "agent"

LAYERS = (
    {"background", "errors", "flag", "status", "paths", "files", "__init__"},
    {"definition", "process", "cgroup", "spawn"},
    {"systemd"},
    {"conmon", "oci", "images", "network", "storage"},
    {"container"},
    {"reconcile"},
    {"daemon", "run", "executor"},
)
# The command starts fast because it knows nothing of what runs containers.
CLI_MAY = {"errors", "status", "paths", "definition", "__init__", "cli"}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def may_import(own: str, other: str) -> bool:
    """Downwards; the lowest but one are siblings that may use each other's values."""
    return layer(other) < layer(own) or layer(other) == layer(own) == 1


def imported_rooms(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "agent":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("agent.")}
    return found - {"__version__"}


def test_imports_point_downwards() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {other}"
        for path in sorted(ROOT.rglob("*.py"))
        if room(path) != "cli"
        for other in imported_rooms(path) - {room(path)}
        if not may_import(room(path), other)
    ]
    assert wrong == []


def test_the_command_knows_only_the_lowest_layers() -> None:
    wrong = {
        f"{path.name}: {other}" for path in (ROOT / "cli").glob("*.py") for other in imported_rooms(path) - CLI_MAY
    }
    assert wrong == set()


def test_the_bus_library_is_behind_few_doors() -> None:
    doors = {"systemd/bus.py", "systemd/bus_writer.py", "daemon/api.py", "daemon/polkit.py"}
    users = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if "dbus_next" in path.read_text() and not path.is_relative_to(ROOT / "cli")
    }
    assert users <= doors
