# SPDX-License-Identifier: Apache-2.0
"""A container's scope as values: its name, its properties, where its cgroup lies; pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from agent import cgroup
from agent.definition.model import Container
from agent.definition.resources import changed_properties, scope_properties
from agent.systemd.scopes import Property

CONTAINERS_TARGET = "cleat-containers.target"
_TASKS_MAX_DEFAULT = 2048  # podman's pids_limit
_USEC = 1_000_000
_INFINITY = 2**64 - 1
# systemd's own deadline lies behind the agent's steps: stop signal, SIGKILL, SIGKILL to the cgroup.
STOP_MARGIN_SEC = 15.0


AGENT, FOREGROUND = "cleat-", "cleat:"
"""Prefixes of scopes: the agent's, and those of `cleat run`, which the agent leaves alone."""


def scope_name(name: str, prefix: str = AGENT) -> str:
    """The unit of a container. An instance's `@` becomes `:`, since scopes cannot have templates' names."""
    return f"{prefix}{name.replace('@', ':')}.scope"


def container_name(unit: str) -> str:
    """The container of a scope; "" for a unit that is none of ours."""
    for prefix in (AGENT, FOREGROUND):
        if unit.startswith(prefix) and unit.endswith(".scope"):
            return unit.removeprefix(prefix).removesuffix(".scope").replace(":", "@")
    return ""


def after_target(name: str) -> str:
    """Stands for a container towards those that are ordered after it, see units/cleat-after@.target."""
    return f"cleat-after@{name}.target"


def slice_path(name: str) -> str:
    """Where systemd puts a slice: a-b.slice lies in a.slice (systemd.slice(5))."""
    stem = name.removesuffix(".slice")
    if stem in {"", "-"}:
        return ""
    parts = stem.split("-")
    return "/".join("-".join(parts[: i + 1]) + ".slice" for i in range(len(parts)))


def expected_cgroup(root: str, slice_name: str, unit: str) -> str:
    """The cgroup that a scope will have below the manager's root cgroup."""
    return f"{root.rstrip('/')}/{slice_path(slice_name)}/{unit}".replace("//", "/")


def _usec(seconds: float) -> int:
    return _INFINITY if math.isinf(seconds) else int(seconds * _USEC)


def limits(container: Container) -> list[Property]:
    """What [resources] asks for, and podman's task limit where the host can enforce one."""
    found: list[Property] = [(p.name, p.signature, p.value) for p in scope_properties(container.resources)]
    names = {name for name, _, _ in found}
    if not names & {"TasksMax", "TasksMaxScale"} and "pids" in cgroup.available_controllers():
        found.append(("TasksMax", "t", _TASKS_MAX_DEFAULT))
    return found


def properties(
    container: Container, *, stop_signal: int, after: Iterable[str] = (), bound_to: str = "", is_needed: bool = True
) -> list[Property]:
    """The properties of a container's scope for StartTransientUnit.

    It is ordered after the agent's target and the containers `after`: at shutdown it is stopped before them. It ends
    with the unit `bound_to`, where one is given. Where no other container is started after it (`is_needed`), the
    target that stands for it in the order is left out: PID 1 would load it for nothing.
    """
    title = f"Container {container.name}" + (f": {container.description}" if container.description else "")
    before_it = [after_target(name) for name in after]
    found: list[Property] = [
        ("Description", "s", title),
        ("Documentation", "as", ["man:cleat(1)", "man:cleat-container.toml(5)"]),
        ("Slice", "s", container.cgroup.slice),
        ("After", "as", [CONTAINERS_TARGET, *before_it]),
        ("Delegate", "b", True),
        ("CollectMode", "s", "inactive-or-failed"),
        ("KillSignal", "i", stop_signal),
        ("TimeoutStopUSec", "t", _usec(container.service.timeout_stop_sec + STOP_MARGIN_SEC)),
    ]
    if is_needed:
        found.append(("Before", "as", [after_target(container.name)]))
    if before_it:
        found.append(("Wants", "as", before_it))
    if bound_to:
        found.append(("BindsTo", "as", [bound_to]))
    return found + limits(container)


def limit_changes(old: Container, new: Container) -> list[Property]:
    """The properties to set on a running scope when the limits of a definition changed; resets included."""
    changed: list[Property] = [(p.name, p.signature, p.value) for p in changed_properties(old.resources, new.resources)]
    if "tasks_max" in old.resources.properties and "tasks_max" not in new.resources.properties:
        changed += [p for p in limits(new) if p[0] == "TasksMax"]
    return changed
