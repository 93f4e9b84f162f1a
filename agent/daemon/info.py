# SPDX-License-Identifier: Apache-2.0
"""Versions and features of everything a container's start depends on, for `cleat info`."""

from __future__ import annotations

import os
import platform
from typing import Any

from agent import __version__, cgroup
from agent.daemon.agent import Agent
from agent.errors import CleatError


async def gather(agent: Agent) -> dict[str, Any]:
    """What is installed; a tool that is missing or too old is shown with its error."""
    host = agent.host
    return {
        "version": __version__,
        "pid": os.getpid(),
        "containers": len(agent.supervisors),
        "summary": agent.summary(),
        "conmon": await _conmon(agent),
        "runtimes": {name: await _runtime(agent, name) for name in sorted({"crun", "runc", *host.config.runtimes})},
        "cgroup_controllers": sorted(cgroup.available_controllers()),
        "kernel": platform.release(),
        "paths": {"config": os.fspath(host.paths.config), "runtime": os.fspath(host.paths.runtime)},
    }


async def _conmon(agent: Agent) -> dict[str, Any]:
    try:
        conmon = await agent.host.conmon()
    except CleatError as e:
        return {"error": str(e)}
    return {"path": conmon.path, "version": conmon.version_text}


async def _runtime(agent: Agent, name: str) -> dict[str, Any]:
    try:
        runtime, features = await agent.host.runtime(name)
    except CleatError as e:
        return {"error": str(e)}
    return {
        "path": runtime.path,
        "version": features.version,
        "package": await runtime.package(),
        "log_json": features.log_json,
        "no_cgroups": features.no_cgroups,
        "checkpoint": features.checkpoint,
        "checkpoint_reason": features.checkpoint_reason,
        "warnings": list(features.warnings),
    }
