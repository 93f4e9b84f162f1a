# SPDX-License-Identifier: Apache-2.0
"""Images for containers: fetched when the pull policy says so, unpacked once per digest, shared by all that run them.

One fetch per image at a time: whoever wants the same image waits for the same one, and sees its progress. It ends when
the last of them has lost interest. What the registry has matters only while fetching; a start looks here alone.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import msgspec

from agent.definition.model import Container, Pull, PullPolicy
from agent.errors import CleatError, InvalidArgument, PullFailed
from agent.images import policy, reference, skopeo, unpack
from agent.images.policy import Fetch, Held
from agent.images.reference import Reference
from agent.images.skopeo import Progress
from agent.images.store import Image, Manifest, Store
from agent.paths import Paths
from agent.spawn import tool
from agent.spawn.spawner import HERE, Spawner
from agent.systemd import journal

_PARALLEL = 3
_DU_TIMEOUT = 120.0


def _silent(_: str) -> None:
    """For those who do not want to hear of progress."""


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `cleat images`. `size` of the compressed layers in bytes, `fetched_at` in Unix seconds."""

    reference: str
    digest: str
    remote_digest: str
    size: int
    fetched_at: float
    unpacked: bool


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed, or would be: references, digests of trees, number of blobs, bytes on disk."""

    images: tuple[str, ...]
    trees: tuple[str, ...]
    blobs: int
    bytes: int


class _Work:
    """A fetch under way, and who waits for it."""

    def __init__(self) -> None:
        self.task: asyncio.Task[Image] | None = None
        self.waiting = 0
        self.listeners: list[Progress] = []

    def tell(self, text: str) -> None:
        for listener in self.listeners:
            listener(text)


class Images:
    """The images of one agent. Errors are PullFailed, or Unsupported where a tool is missing."""

    def __init__(self, paths: Paths, spawner: Spawner = HERE, files: Spawner = HERE) -> None:
        """`spawner` unpacks; `files` runs what measures and removes."""
        self._paths = paths
        self._spawner = spawner
        self._files = files
        self._store = Store(paths.images)
        self._works: dict[tuple[str, ...], _Work] = {}
        self._slots = asyncio.Semaphore(_PARALLEL)

    def find(self, container: Container) -> Image | None:
        """What a start of the container uses: only looked up, never fetched. None when there is nothing yet."""
        return self._store.image(str(_reference(container)))

    async def ensure(self, container: Container, progress: Progress = _silent) -> Image:
        """Have the container's image ready, by its pull policy. Raises CleatError with the container's name."""
        wanted = _reference(container)
        held = self._store.held.get(str(wanted))
        fetch = policy.decide(container.pull.policy, is_here=held is not None, is_fixed=wanted.is_fixed)
        found = self._store.image(str(wanted))
        if fetch is Fetch.NOTHING and found is not None:
            return found
        if fetch is Fetch.REFUSE:
            raise PullFailed(
                f"{wanted} is not here, and is not to be fetched",
                container=container.name,
                key="pull.policy",
                hint=f"cleat pull {container.name}",
            )
        return await self._together(container, wanted, fetch, progress)

    async def pull(self, container: Container, progress: Progress = _silent) -> Image:
        """Have what the registry has now, whatever the policy. Raises CleatError."""
        wanted = _reference(container)
        return await self._together(container, wanted, Fetch.COMPARE, progress)

    async def remote_digest(self, container: Container) -> str:
        """The digest that the registry names for the container's image now. Raises PullFailed."""
        return await skopeo.remote_digest(_reference(container), container.pull)

    # One fetch for all who want it

    async def _together(self, container: Container, wanted: Reference, fetch: Fetch, progress: Progress) -> Image:
        key = _key(wanted, container.pull, fetch)
        work = self._works.get(key)
        if work is None:
            work = self._works[key] = _Work()
            work.task = asyncio.create_task(
                self._fetch(wanted, container.pull, fetch, work.tell, container.name), name=f"image {wanted}"
            )
            work.task.add_done_callback(lambda _: self._forget(key, work))
        task = work.task
        assert task is not None
        work.waiting += 1
        work.listeners.append(progress)
        try:
            return await asyncio.shield(task)
        except CleatError as e:
            found = self._store.image(str(wanted))
            if found is not None and fetch is Fetch.PREFER:
                return found
            raise _named(e, container.name) from e
        finally:
            work.listeners.remove(progress)
            work.waiting -= 1
            if work.waiting == 0 and not task.done():
                self._forget(key, work)
                task.cancel()
                await asyncio.wait({task})

    def _forget(self, key: tuple[str, ...], work: _Work) -> None:
        if self._works.get(key) is work:
            del self._works[key]
        if work.task is not None and work.task.done() and not work.task.cancelled():
            work.task.exception()

    async def _fetch(self, wanted: Reference, pull: Pull, fetch: Fetch, tell: Progress, name: str) -> Image:
        try:
            async with self._slots:
                self._store.make_folders()
                await self._clear_work()
                return await self._fetch_in_turn(wanted, pull, fetch, tell, name)
        except OSError as e:
            if isinstance(e, CleatError):
                raise
            raise PullFailed(
                f"{wanted} cannot be stored",
                file=str(e.filename or ""),
                why=e.strerror or str(e),
                hint="cleat prune; df /var/lib/cleat",
            ) from e

    async def _fetch_in_turn(self, wanted: Reference, pull: Pull, fetch: Fetch, tell: Progress, name: str) -> Image:
        held = self._store.held.get(str(wanted))
        remote = ""
        if held is not None and fetch in {Fetch.COMPARE, Fetch.PREFER} and not wanted.is_fixed:
            remote = await self._compare(wanted, pull, fetch, tell)
            if remote == "" or remote in {held.remote_digest, held.digest}:
                return await self._held_image(wanted, held, pull, tell, name)
        elif held is not None:
            if pull.policy is PullPolicy.NEVER and fetch is Fetch.NOTHING:
                return await self._unpack_held(wanted, held, tell)
            return await self._held_image(wanted, held, pull, tell, name)
        return await self._copy(wanted, pull, remote, tell, name)

    async def _compare(self, wanted: Reference, pull: Pull, fetch: Fetch, tell: Progress) -> str:
        """What the registry has now; "" = take what is here."""
        tell(f"looking for a newer {wanted}")
        try:
            return await skopeo.remote_digest(wanted, pull)
        except PullFailed as e:
            if fetch is Fetch.COMPARE:
                raise
            tell(f"{e.what}; using what is here")
            return ""

    async def _held_image(self, wanted: Reference, held: Held, pull: Pull, tell: Progress, name: str) -> Image:
        """What is here; fetched again where its blobs are damaged or gone."""
        try:
            return await self._unpack_held(wanted, held, tell)
        except PullFailed:
            return await self._copy(wanted, pull, held.remote_digest, tell, name)

    async def _unpack_held(self, wanted: Reference, held: Held, tell: Progress) -> Image:
        found = self._store.unpacked(str(wanted), held.digest)
        if found is not None:
            return found
        manifest = self._store.manifest(held.digest)
        tell(f"unpacking {wanted}")
        await unpack.unpack(self._store, wanted, manifest, self._spawner, self._files)
        return self._found(wanted, manifest)

    async def _copy(self, wanted: Reference, pull: Pull, remote: str, tell: Progress, name: str) -> Image:
        journal.send(journal.Event.PULLING, f"fetching {wanted}", container=name, IMAGE=str(wanted))
        began = time.monotonic()
        manifest = await self._copy_and_unpack(wanted, pull, tell)
        entry = Held(digest=manifest.digest, remote_digest=remote, fetched_at=time.time(), size=manifest.size)
        self._store.change(lambda held: held.update({str(wanted): entry}))
        journal.send(
            journal.Event.PULLED,
            f"{wanted} fetched in {time.monotonic() - began:.1f} s",
            container=name,
            IMAGE=str(wanted),
            IMAGE_DIGEST=manifest.digest,
        )
        return self._found(wanted, manifest)

    async def _copy_and_unpack(self, wanted: Reference, pull: Pull, tell: Progress) -> Manifest:
        manifest = await self._copy_once(wanted, pull, tell)
        try:
            await unpack.unpack(self._store, wanted, manifest, self._spawner, self._files)
        except PullFailed:
            if self._store.is_complete(manifest):
                raise
            # A layer that was here before turned out to be damaged, and was dropped: this time it comes whole.
            manifest = await self._copy_once(wanted, pull, tell)
            await unpack.unpack(self._store, wanted, manifest, self._spawner, self._files)
        return manifest

    async def _copy_once(self, wanted: Reference, pull: Pull, tell: Progress) -> Manifest:
        tell(f"pulling {wanted}")
        work = self._store.work_folder()
        try:
            argv = skopeo.copy_arguments(wanted, pull, work / "layout", self._store.blobs, work)
            await skopeo.copy(argv, wanted, pull, tell)
            manifest = self._store.layout_manifest(work / "layout")
        finally:
            await asyncio.shield(unpack.remove(work, spawner=self._files))
        tell(f"unpacking {wanted}")
        return manifest

    def _found(self, wanted: Reference, manifest: Manifest) -> Image:
        found = self._store.unpacked(str(wanted), manifest.digest)
        if found is None:
            raise PullFailed(f"{wanted} was fetched, and is gone again", hint="is somebody clearing /var/lib/cleat?")
        return found

    async def _clear_work(self) -> None:
        """What a killed agent left half-made."""
        await unpack.remove(*self._store.work_folders()[1], spawner=self._files)

    # What is here, and what may go

    def list_images(self) -> list[Listed]:
        return [
            Listed(
                reference=name,
                digest=held.digest,
                remote_digest=held.remote_digest,
                size=held.size,
                fetched_at=held.fetched_at,
                unpacked=self._store.unpacked(name, held.digest) is not None,
            )
            for name, held in sorted(self._store.held.items())
        ]

    def digests_in_use(self) -> frozenset[str]:
        """Of all incarnations, also those whose reference means something newer by now: `image` in their bundles."""
        found: set[str] = set()
        with suppress(FileNotFoundError):
            for entry in os.scandir(self._paths.bundles):
                found.add(_read_line(os.path.join(entry.path, "image")))
        return frozenset(found - {""})

    async def prune(self, needed_references: Collection[str], *, dry_run: bool) -> Pruned:
        """Remove what neither a definition nor a container needs; half-made things of dead processes too.

        `needed_references` as in definitions. Blobs stay while something is being fetched. Raises CleatError.
        """
        removal = self._removal(needed_references)
        used, stale = self._store.work_folders()
        blobs = () if used else removal.blobs
        paths = [self._store.tree_folder(digest) for digest in removal.trees]
        size = await self._disk_usage([*paths, *stale, *(self._store.blob_path(blob) for blob in blobs)])
        if not dry_run:
            await self._remove(needed_references)
        return Pruned(images=removal.references, trees=removal.trees, blobs=len(blobs), bytes=size)

    async def _disk_usage(self, paths: list[Path]) -> int:
        if not paths:
            return 0
        text = b"\0".join(os.fsencode(path) for path in paths)
        argv = ["du", "--summarize", "--total", "--block-size=1", "--files0-from=-"]
        result = await tool.run(argv, stdin=text, timeout=_DU_TIMEOUT, limit=8 << 20, spawner=self._files)
        last = result.stdout.strip().rpartition(b"\n")[2].split(b"\t")[0]
        return int(last) if last.isdigit() else 0

    def _removal(self, needed_references: Collection[str]) -> policy.Removal:
        store = self._store
        needed = {str(reference.parse(text)) for text in needed_references}
        return policy.removable(
            store.held,
            needed,
            self.digests_in_use(),
            store.all_trees(),
            store.all_blobs(),
            {held.digest: store.blobs_of(held.digest) for held in store.held.values()},
        )

    async def _remove(self, needed_references: Collection[str]) -> None:
        """Decide and take away without a pause in between: nothing can start on a tree that is going."""
        self._store.make_folders()
        used, stale = self._store.work_folders()
        removal = self._removal(needed_references)
        gone = [*stale]
        try:
            if removal.references:
                self._store.change(lambda held: _drop(held, removal.references))
            gone += [self._store.set_aside(digest) for digest in removal.trees]
            if not used:
                self._store.drop_blobs(list(removal.blobs))
        except OSError as e:
            raise CleatError("cannot remove images", file=str(e.filename or ""), why=e.strerror or "") from e
        finally:
            await unpack.remove(*gone, spawner=self._files)


def _read_line(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as f:
            return f.read(256).strip()
    except OSError:
        return ""


def _drop(held: dict[str, Held], names: Collection[str]) -> None:
    for name in names:
        held.pop(name, None)


def _key(wanted: Reference, pull: Pull, fetch: Fetch) -> tuple[str, ...]:
    """Whose fetches are one and the same: the image, how it is reached, and whether the registry is asked at all."""
    return str(wanted), pull.auth_file, pull.cert_dir, str(pull.tls_verify), str(fetch is Fetch.NOTHING)


def _reference(container: Container) -> Reference:
    if not container.image:
        raise InvalidArgument("has no image", container=container.name, key="image", hint="it runs from a folder")
    return reference.parse(container.image)


def _named(error: CleatError, container: str) -> CleatError:
    """The same error, for one of several who waited."""
    return type(error)(
        error.what, container=container, file=error.file, key=error.key or "image", why=error.why, hint=error.hint
    )
