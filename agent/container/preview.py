# SPDX-License-Identifier: Apache-2.0
"""The runtime spec that a container would be started with now, for those who want to look. Nothing is started for it.

Volumes are not made, credentials not read and images not fetched; the files that a spec names go into a bundle folder
that is removed again.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from agent import storage
from agent.container import bundle as bundles
from agent.container import namespaces, scope, userns, volumes
from agent.container.bundle import Bundle, Extras
from agent.container.credentials import Secrets
from agent.container.gather import Gathered, find_root
from agent.container.host import Host
from agent.container.launch import notify_folder
from agent.container.placement import placement, runtime_annotations
from agent.definition.model import Container, MountType
from agent.errors import CleatError
from agent.oci import capabilities


async def spec_of(host: Host, container: Container, listen_fdnames: tuple[str, ...]) -> dict[str, Any]:
    """Raises CleatError with what would keep the container from starting."""
    container_id = secrets.token_hex(32)
    folder = host.paths.bundle(container_id)
    unit = scope.scope_name(container.name, host.scope_prefix)
    place = placement(host.cgroup_root, container.cgroup, container.name, container_id, unit)
    extras = Extras(
        listen_fds=len(listen_fdnames),
        listen_fdnames=listen_fdnames,
        notify_folder=notify_folder(host, container, container_id),
        watchdog_usec=int(container.service.watchdog_sec * 1e6),
    )
    try:
        bundles.make_folder(folder)
        if extras.notify_folder:
            os.mkdir(extras.notify_folder, 0o755)
        made = await _prepared(host, container, folder, place.cgroups_path, extras)
    except OSError as e:
        if isinstance(e, CleatError):
            raise
        raise CleatError(
            "its spec cannot be made", container=container.name, file=str(e.filename or ""), why=e.strerror or str(e)
        ) from e
    finally:
        await storage.remove_tree(folder)
    found = runtime_annotations(container, place, stop_signal=made.stop_signal)
    return made.spec if not found else {**made.spec, "annotations": {**made.spec.get("annotations", {}), **found}}


async def _prepared(host: Host, container: Container, folder: Path, cgroups_path: str, extras: Extras) -> Bundle:
    gathered = await _gathered(host, container, folder)
    try:
        return bundles.prepare(host, container, folder.name, cgroups_path, extras, gathered)
    finally:
        gathered.close()


async def _gathered(host: Host, container: Container, folder: Path) -> Gathered:
    root = find_root(host, container)
    asked = volumes.of_image(container, root.image.volumes) if root.image else ()
    wanted = userns.is_wanted(container)
    return Gathered(
        root=root,
        image_volumes=asked,
        volumes={
            mount.source: host.volumes.data(mount.source)
            for mount in (*container.mount, *asked)
            if mount.type is MountType.VOLUME
        },
        secrets=Secrets({credential.name: b"" for credential in container.credential}),
        shared=namespaces.open_shared(container, host.payload_pid),
        user_namespace=userns.reserve(container, host.paths, folder) if wanted else None,
        capabilities=capabilities.from_mask(await host.spawner.bounding_set()),
    )
