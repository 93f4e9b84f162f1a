# SPDX-License-Identifier: Apache-2.0
"""What a bundle is made from and has to be waited for: volumes filled, credentials read, namespaces opened."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec

from agent import storage
from agent.container import credentials, mounts, namespaces, rootless, userns, volumes
from agent.container.credentials import Secrets
from agent.container.host import Host
from agent.container.namespaces import Shared
from agent.definition.model import Container, Mount, MountType
from agent.errors import CleatError, CommandNotFound, InvalidArgument, PullFailed, RuntimeFailed, Unsupported
from agent.oci import capabilities, image_config
from agent.oci.features import parse_version
from agent.oci.idmap import Mappings
from agent.oci.image_config import ImageConfig

_RUNC_IDMAP = (1, 2)  # ID-mapped mounts: runc's change log
# Mount points of every container. A runtime that follows a link there mounts somewhere else (CVE-2026-41579,
# CVE-2026-47766).
_NO_LINKS = ("dev", "proc", "sys")


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """The root file system that is run: an image's tree or a folder; "" where a bundle brings its own."""

    path: str = ""
    image: ImageConfig | None = None
    digest: str = ""


class Gathered(msgspec.Struct, frozen=True, kw_only=True):
    """All that was waited for. It holds fds that the spec names: close() once the runtime has used them.

    `capabilities` are those that a container can have at most.
    """

    root: Root
    image_volumes: tuple[Mount, ...]
    volumes: dict[str, Path]
    secrets: Secrets
    shared: Shared
    user_namespace: Mappings | None = None
    capabilities: frozenset[str] = frozenset()

    def close(self) -> None:
        self.shared.close()


async def gather(host: Host, container: Container, bundle: Path) -> Gathered:
    """The bundle's folder exists already. Raises CleatError."""
    rootless.check(container)
    root = find_root(host, container)
    if root.digest:
        (bundle / "image").write_text(root.digest)  # from here on the tree stays
    if rootless.wants_copy(container):
        root = await _own_copy(host, container, root, bundle.name)
    asked = volumes.of_image(container, root.image.volumes) if root.image else ()
    folders = {
        mount.source: await host.volumes.ready(mount, root.path, container.name)
        for mount in (*container.mount, *asked)
        if mount.type is MountType.VOLUME
    }
    secrets = await credentials.load(container, host.spawner)
    can_have = capabilities.from_mask(await host.spawner.bounding_set())
    shared = namespaces.open_shared(container, host.payload_pid)
    try:
        _take_small_files(host, container, bundle)
        shifted = None
        if userns.is_wanted(container):
            await _check_runtime(host, container, has_volumes=bool(folders))
            shifted = userns.reserve(container, host.paths, bundle)
    except BaseException:
        shared.close()
        raise
    return Gathered(
        root=root,
        image_volumes=asked,
        volumes=folders,
        secrets=secrets,
        shared=shared,
        user_namespace=shifted,
        capabilities=can_have,
    )


def _take_small_files(host: Host, container: Container, bundle: Path) -> None:
    how, _, name = container.network.mode.partition(":")
    other = host.running_id(name) if how == "container" else ""
    if other and not container.bundle:
        mounts.take_small_files(container, host.paths.bundle(other), bundle)


async def _own_copy(host: Host, container: Container, root: Root, container_id: str) -> Root:
    """The run's own, in place of an overlay. Raises CleatError."""
    folder = host.paths.overlay(container_id)
    # Nobody else enters: set-id programs in it are the user's own.
    folder.mkdir(mode=0o700, parents=True)
    try:
        await storage.copy_tree(Path(root.path), folder / "rootfs", host.files)
    except CleatError as e:
        raise RuntimeFailed(
            "its image cannot be copied",
            container=container.name,
            key="image",
            why=e.why,
            hint=f"df {folder.parent}; with security.read_only no copy is made",
        ) from e
    return msgspec.structs.replace(root, path=os.fspath(folder / "rootfs"))


async def _check_runtime(host: Host, container: Container, *, has_volumes: bool) -> None:
    """A runtime that does not know `idmap` passes over it, and the container cannot use its own files."""
    wants_idmap = has_volumes or any("idmap" in mount.options for mount in container.mount)
    _, features = await host.runtime(container.runtime.name)
    if wants_idmap and features.kind == "runc" and parse_version(features.version) < _RUNC_IDMAP:
        raise Unsupported(
            f"runc {features.version} cannot show volumes to a user namespace",
            container=container.name,
            key="security.user_namespace",
            hint='use crun, or runc 1.2 or newer, or user_namespace = "host"',
        )


def find_root(host: Host, container: Container) -> Root:
    """Looks here only: images are fetched before. Raises CleatError."""
    if container.bundle:
        return Root()
    if container.image:
        return _of_image(host, container)
    path = os.path.realpath(container.rootfs)
    if not os.path.isdir(path):
        raise CommandNotFound(
            f"{container.rootfs} is not a folder",
            container=container.name,
            key="rootfs",
            hint="create it, or mend the path",
        )
    _check_links(path, container.name, "rootfs")
    return Root(path=path)


def _of_image(host: Host, container: Container) -> Root:
    image = host.images.find(container)
    if image is None:
        raise PullFailed(
            f"{container.image} is not here", container=container.name, key="image", hint=f"cleat pull {container.name}"
        )
    path = os.fspath(image.tree)
    _check_links(path, container.name, "image")
    return Root(path=path, image=image_config.from_json(image.config), digest=image.digest)


def _check_links(root: str, container: str, key: str) -> None:
    for name in _NO_LINKS:
        try:
            mode = os.lstat(os.path.join(root, name)).st_mode
        except OSError:
            continue
        if stat.S_ISLNK(mode):
            raise InvalidArgument(
                f"/{name} of its root file system is a symbolic link",
                container=container,
                key=key,
                why="runtimes have been led astray by that",
                hint=f"make /{name} a folder, and ask who made this image",
            )
