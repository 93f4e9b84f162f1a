# SPDX-License-Identifier: Apache-2.0
"""What containers leave on disk, as the bus shows it: images and volumes, and which of them nothing needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from agent.container import volumes
from agent.daemon.agent import Agent
from agent.definition.model import Container
from agent.images import reference
from agent.oci import image_config


async def pull(agent: Agent, name: str) -> str:
    """Fetch a definition's image now. Nothing is restarted. Raises CleatError."""
    container = agent.supervisor(name).definition.container
    image = await agent.host.images.pull(container)
    return json.dumps({"reference": image.reference, "digest": image.digest})


def images(agent: Agent) -> str:
    """All images here, each with the names of the definitions that want it."""
    users: dict[str, list[str]] = {}
    for container in _containers(agent):
        if container.image:
            users.setdefault(str(reference.parse(container.image)), []).append(container.name)
    rows = [
        {**msgspec.to_builtins(row), "containers": sorted(set(users.get(row.reference, ())))}
        for row in agent.host.images.list_images()
    ]
    return json.dumps(rows)


async def prune(agent: Agent, *, dry_run: bool) -> str:
    """Remove what nothing needs. Volumes hold somebody's data: unused ones are only named."""
    needed = {container.image for container in _containers(agent) if container.image}
    pruned = await agent.host.images.prune(needed, dry_run=dry_run)
    found: dict[str, Any] = {
        "dry_run": dry_run,
        **msgspec.to_builtins(pruned),
        "unused_volumes": _unused_volumes(agent),
    }
    return json.dumps(found)


def _containers(agent: Agent) -> Iterator[Container]:
    """Of everything that is, or may be started: what runs may differ from what its file says by now."""
    for supervisor in agent.supervisors.values():
        yield supervisor.definition.container
    for definition in agent.loaded.definitions.values():
        yield definition.container


def _unused_volumes(agent: Agent) -> list[str]:
    used: set[str] = set()
    for container in _containers(agent):
        used |= volumes.named(container.mount)
        image = agent.host.images.find(container) if container.image else None
        if image is not None:
            used |= volumes.named(volumes.of_image(container, image_config.from_json(image.config).volumes))
    return [name for name in agent.host.volumes.all_names() if name not in used]
