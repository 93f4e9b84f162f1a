# SPDX-License-Identifier: Apache-2.0
"""Where conmon and payload live in the cgroup tree, by [cgroup] mode and manager; pure.

                systemd                                             cgroupfs (below the cgroup /cleat, no units)
split           one scope cleat-NAME.scope: supervisor/, container/   container-NAME/: supervisor/, container/
enabled         payload: cleat-NAME.scope, made by the runtime        payload: container-NAME/, made by the runtime
                conmon: cleat-conmon-ID.scope                         conmon: conmon-ID/
no-conmon       payload: as enabled                                   payload: as enabled
                conmon: cleat.conmon.scope, shared by all             conmon: conmon/, shared by all
disabled        both: cleat-NAME.scope, the runtime makes nothing     both: container-NAME/, the runtime makes nothing

The modes are podman's (podman-run(1), --cgroups). There conmon stays with the caller in two of them; here the caller
is the agent, whose cgroup systemd empties when the agent is stopped, so conmon is always elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

import msgspec

from agent import cgroup
from agent.container import scope
from agent.definition.graph import predecessors
from agent.definition.model import Cgroup, CgroupManager, CgroupMode, Container
from agent.errors import Unsupported

SHARED_SCOPE = "cleat.conmon.scope"
"""No container can have it: a scope of the agent's begins with `cleat-`."""
SHARED_SLICE = "cleat.slice"


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Cgroup paths and units of one run.

    `unit` is the container's scope, `monitor_unit` one for conmon alone; "" = none. `cgroup` is all that is the
    container's own, `payload` and `supervisor` where the two live. `cgroups_path` is for the spec (config-linux.md).
    """

    unit: str
    cgroup: str
    payload: str
    supervisor: str
    cgroups_path: str
    monitor_unit: str = ""
    runtime_scope: bool = False
    delegated: bool = True

    @property
    def units(self) -> tuple[str, ...]:
        """The units that are this container's alone."""
        own = () if self.monitor_unit == SHARED_SCOPE else (self.monitor_unit,)
        return tuple(unit for unit in (self.unit, *own) if unit)

    @property
    def first_unit(self) -> str:
        """The unit that conmon is started in, "" where there are none."""
        return self.monitor_unit or ("" if self.runtime_scope else self.unit)

    @property
    def groups(self) -> tuple[str, ...]:
        """The cgroups that are this container's alone."""
        return (self.cgroup,) if self.supervisor_is_shared or self.is_together else (self.cgroup, self.supervisor)

    @property
    def supervisor_is_shared(self) -> bool:
        """Whether conmons of other containers live beside this one's."""
        return self.monitor_unit == SHARED_SCOPE or self.supervisor.endswith("/conmon")

    @property
    def own_groups(self) -> tuple[str, ...]:
        """Groups to remove at the end where systemd does not."""
        return () if self.unit else self.groups

    @property
    def is_together(self) -> bool:
        """Whether conmon lives inside the container's own group."""
        return self.supervisor.startswith(self.cgroup)


def placement(root: str, settings: Cgroup, name: str, container_id: str, unit: str) -> Placement:
    """Below `root`, the service manager's own cgroup; `unit` is the container's scope where there is one."""
    if settings.manager is CgroupManager.CGROUPFS:
        return _cgroupfs(f"{root.rstrip('/')}/{cgroup.CGROUPFS_PARENT}", settings.mode, name, container_id)
    group = scope.expected_cgroup(root, settings.slice, unit)
    match settings.mode:
        case CgroupMode.SPLIT:
            return _split(unit, group)
        case CgroupMode.DISABLED:
            return _disabled(unit, group)
        case CgroupMode.ENABLED:
            monitor, monitor_slice = f"{scope.AGENT}conmon-{container_id}.scope", settings.slice
        case CgroupMode.NO_CONMON:
            monitor, monitor_slice = SHARED_SCOPE, SHARED_SLICE
        case _:
            assert_never(settings.mode)
    return Placement(
        unit=unit,
        cgroup=group,
        payload=group,
        supervisor=f"{scope.expected_cgroup(root, monitor_slice, monitor)}/{cgroup.SUPERVISOR}",
        cgroups_path=_systemd_path(settings.slice, unit),
        monitor_unit=monitor,
        runtime_scope=True,
    )


def _split(unit: str, group: str) -> Placement:
    payload = f"{group}/{cgroup.PAYLOAD}"
    supervisor = f"{group}/{cgroup.SUPERVISOR}"
    return Placement(unit=unit, cgroup=group, payload=payload, supervisor=supervisor, cgroups_path=payload)


def _disabled(unit: str, group: str) -> Placement:
    both = f"{group}/{cgroup.SUPERVISOR}"
    return Placement(unit=unit, cgroup=group, payload=both, supervisor=both, cgroups_path="", delegated=False)


def _cgroupfs(parent: str, mode: CgroupMode, name: str, container_id: str) -> Placement:
    group = f"{parent}/container-{name}"
    match mode:
        case CgroupMode.SPLIT:
            return _split("", group)
        case CgroupMode.DISABLED:
            return _disabled("", group)
        case CgroupMode.ENABLED:
            supervisor = f"{parent}/conmon-{container_id}"
        case CgroupMode.NO_CONMON:
            supervisor = f"{parent}/conmon"
        case _:
            assert_never(mode)
    return Placement(unit="", cgroup=group, payload=group, supervisor=supervisor, cgroups_path=group)


def _systemd_path(slice_name: str, unit: str) -> str:
    """slice:prefix:name, from which a runtime with --systemd-cgroup makes prefix-name.scope in the slice."""
    prefix, _, name = unit.removesuffix(".scope").partition("-")
    return f"{slice_name}:{prefix}:{name}"


def require_possible(container: Container, place: Placement, *, runtime: str, no_cgroups: bool) -> None:
    """Raises Unsupported for what would not hold: limits without a scope, a scope that the runtime cannot name ..."""
    settings = container.cgroup
    if place.runtime_scope and ":" in place.unit:
        raise Unsupported(
            f"the runtime cannot make {place.unit}",
            container=container.name,
            key="cgroup.mode",
            why="its form slice:prefix:name has no room for a colon in the name",
            hint='use mode = "split"',
        )
    if settings.manager is CgroupManager.CGROUPFS and container.resources.properties:
        raise Unsupported(
            "limits cannot be set",
            container=container.name,
            key="cgroup.manager",
            why="they are properties of a scope, and cgroupfs has none",
            hint='use manager = "systemd", or remove ' + ", ".join(sorted(container.resources.properties)),
        )
    if settings.mode is CgroupMode.DISABLED and not no_cgroups:
        raise Unsupported(
            "cgroups cannot be disabled",
            container=container.name,
            key="cgroup.mode",
            why=f"{runtime} always makes one",
            hint='use crun, or mode = "split"',
        )


def cgroup_args(settings: Cgroup) -> tuple[str, ...]:
    """Global arguments for a runtime that shall leave cgroups alone (crun(1))."""
    return ("--cgroup-manager=disabled",) if settings.mode is CgroupMode.DISABLED else ()


def runtime_annotations(container: Container, place: Placement, *, stop_signal: int) -> dict[str, str]:
    """For a scope that the runtime makes: what the agent would have asked systemd for (crun(1), runc's systemd.md)."""
    if not place.runtime_scope:
        return {}
    found = scope.properties(container, stop_signal=stop_signal, after=predecessors(container))
    wanted = {name: (kind, value) for name, kind, value in found}
    prefix = "org.systemd.property."
    return {
        f"{prefix}TimeoutStopUSec": f"uint64 {wanted['TimeoutStopUSec'][1]}",
        f"{prefix}KillSignal": f"int32 {stop_signal}",
        f"{prefix}CollectMode": "'inactive-or-failed'",
        # crun and runc turn them off, and then no shutdown stops the scope (crun(1), runc's systemd.md).
        f"{prefix}DefaultDependencies": "true",
        **{f"{prefix}{name}": _array(wanted[name][1]) for name in ("After", "Before", "Wants") if name in wanted},
    }


def _array(units: Iterable[str]) -> str:
    """GVariant's text for an array of strings."""
    return "[" + ", ".join(f"'{unit}'" for unit in units) + "]"
