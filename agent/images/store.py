# SPDX-License-Identifier: Apache-2.0
"""The folder of images: what is where, and what a reference means.

    blobs/sha256/HEX      manifests, configurations and layers of all images, as they came (an update fetches only
                          layers that are not here)
    trees/sha256-HEX/     rootfs/ and config.json of one manifest; came here by rename, so it is whole or not there
    references.json       reference -> Held, replaced by rename
    work/PID-START-N/     half-made things of a process; without that process they are rubbish

Only root enters it: trees hold other people's set-id programs. Two processes may use it at once (the agent, and a
container in the foreground): references.json is changed under a lock, everything else comes by rename.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from agent import process
from agent.errors import CleatError, PullFailed
from agent.images.policy import Held

_DOCUMENT_MAX = 8 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_held_decoder = msgspec.json.Decoder(dict[str, Held])


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image that can be run: `tree` is its unpacked root, to be read only; `config` the `config` object of its
    configuration (OCI image spec, config.md), as the image's author wrote it."""

    reference: str
    digest: str
    tree: Path
    config: dict[str, Any]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What of a manifest matters here."""

    digest: str
    config: str
    layers: tuple[str, ...]
    media_types: tuple[str, ...]
    size: int

    @property
    def blobs(self) -> frozenset[str]:
        return frozenset({self.digest, self.config, *self.layers})

    @property
    def has_zstd(self) -> bool:
        return any(kind.endswith("zstd") for kind in self.media_types)


def parse_manifest(digest: str, data: bytes) -> Manifest:
    """An image manifest (OCI image spec, manifest.md). Raises PullFailed for anything else."""
    try:
        found = msgspec.json.decode(data)
        layers = found["layers"]
        manifest = Manifest(
            digest=digest,
            config=str(found["config"]["digest"]),
            layers=tuple(str(layer["digest"]) for layer in layers),
            media_types=tuple(str(layer.get("mediaType", "")) for layer in layers),
            size=sum(int(layer["size"]) for layer in layers),
        )
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError) as e:
        raise PullFailed("the image's manifest is not one of an image", why=str(e)[:200]) from e
    for blob in manifest.blobs:
        check_digest(blob)
    return manifest


def check_digest(digest: str) -> str:
    """It becomes a path, so nothing else may be in it. Raises PullFailed."""
    if not _DIGEST.fullmatch(digest):
        raise PullFailed("the image has a malformed digest", why=repr(digest[:100]), hint="only sha256 is used here")
    return digest


class Store:
    """The folder itself. All methods are quick; what takes time is in images.py."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = folder / "blobs"
        self.trees = folder / "trees"
        self.work = folder / "work"
        self._file = folder / "references.json"
        self._seen: tuple[int, int, int] | None = None
        self._held: dict[str, Held] = {}
        self._images: dict[str, Image] = {}

    def make_folders(self) -> None:
        """Raises CleatError when the state folder cannot be written."""
        try:
            for folder in (self.folder, self.blobs, self.trees, self.work):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as e:
            raise CleatError(f"cannot create {self.folder}", why=e.strerror or "", hint="check /var/lib/cleat") from e

    # References

    @property
    def held(self) -> Mapping[str, Held]:
        """Reference -> what it means here. Read again only when somebody has changed it."""
        try:
            found = os.stat(self._file)
        except OSError:
            return {}
        seen = found.st_ino, found.st_mtime_ns, found.st_size
        if seen != self._seen:
            self._held = self._read()
            self._seen = seen
        return self._held

    def _read(self) -> dict[str, Held]:
        """Images without a readable list are fetched again; that is no reason to fail."""
        try:
            return _held_decoder.decode(self._file.read_bytes())
        except (OSError, msgspec.DecodeError):
            return {}

    def change(self, update: Callable[[dict[str, Held]], None]) -> None:
        """Change the list, as the only one at that moment. Raises OSError."""
        with self._locked():
            held = dict(self.held)
            update(held)
            write_durably(self._file, msgspec.json.encode(held))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # Held for the length of one small write, so waiting for it is no wait.
        fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    # Trees and blobs

    def tree_folder(self, digest: str) -> Path:
        return self.trees / check_digest(digest).replace(":", "-")

    def image(self, reference: str) -> Image | None:
        """What can be run under a reference now, None when it must be fetched or unpacked first."""
        held = self.held.get(reference)
        return None if held is None else self.unpacked(reference, held.digest)

    def unpacked(self, reference: str, digest: str) -> Image | None:
        folder = self.tree_folder(digest)
        known = self._images.get(digest)
        if known is not None and folder.exists():
            return known if known.reference == reference else msgspec.structs.replace(known, reference=reference)
        try:
            config = msgspec.json.decode((folder / "config.json").read_bytes())
        except (OSError, msgspec.DecodeError):
            return None
        found = config.get("config") if isinstance(config, dict) else None
        image = Image(
            reference=reference, digest=digest, tree=folder / "rootfs", config=found if isinstance(found, dict) else {}
        )
        self._images[digest] = image
        return image

    def blob_path(self, digest: str) -> Path:
        return self.blobs / check_digest(digest).replace(":", "/")

    def read_blob(self, digest: str) -> bytes:
        """A small blob, checked against its digest. Raises PullFailed."""
        try:
            with self.blob_path(digest).open("rb") as f:
                data = f.read(_DOCUMENT_MAX + 1)
        except OSError as e:
            raise PullFailed(f"{digest} of the image is missing", why=e.strerror or "", hint="cleat pull NAME") from e
        if len(data) > _DOCUMENT_MAX or hashlib.sha256(data).hexdigest() != digest.partition(":")[2]:
            self.drop_blobs([digest])
            raise PullFailed(f"{digest} of the image is damaged", hint="fetch it again: cleat pull NAME")
        return data

    def manifest(self, digest: str) -> Manifest:
        """Raises PullFailed."""
        return parse_manifest(digest, self.read_blob(digest))

    def layout_manifest(self, layout: Path) -> Manifest:
        """The one image of a layout that skopeo wrote. Raises PullFailed."""
        try:
            index = msgspec.json.decode((layout / "index.json").read_bytes())
            digest = check_digest(str(index["manifests"][0]["digest"]))
        except (OSError, msgspec.DecodeError, KeyError, IndexError, TypeError) as e:
            raise PullFailed("skopeo did not write an image", why=str(e)[:200], hint="check skopeo's version") from e
        return self.manifest(digest)

    def is_complete(self, manifest: Manifest) -> bool:
        return all(self.blob_path(blob).exists() for blob in manifest.blobs)

    def drop_blobs(self, digests: list[str]) -> None:
        for digest in digests:
            with suppress(OSError):
                self.blob_path(digest).unlink()

    def all_trees(self) -> list[str]:
        return [name.replace("-", ":", 1) for name in _names(self.trees) if name.startswith("sha256-")]

    def all_blobs(self) -> list[str]:
        return [f"sha256:{name}" for name in _names(self.blobs / "sha256") if len(name) == 64]

    def blobs_of(self, digest: str) -> frozenset[str]:
        try:
            return self.manifest(digest).blobs
        except PullFailed:
            return frozenset()

    def adopt_tree(self, made: Path, digest: str) -> None:
        """Put a finished tree in its place. Raises OSError; it is fine if somebody else was faster."""
        try:
            made.rename(self.tree_folder(digest))
        except OSError as e:
            if e.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                raise
        sync_folder(self.trees)

    def set_aside(self, digest: str) -> Path:
        """Take a tree away in one step; the caller removes what is returned. Raises OSError."""
        self._images.pop(digest, None)
        target = self.work_folder() / "tree"
        self.tree_folder(digest).rename(target)
        return target.parent

    # Work folders

    def work_folder(self) -> Path:
        """A fresh folder for half-made things, marked as this process's. Raises OSError."""
        own = process.ProcessRef.of(os.getpid())
        assert own is not None
        folder = self.work / f"{own.pid}-{own.start_time}-{secrets.token_hex(6)}"
        folder.mkdir(mode=0o700)
        return folder

    def work_folders(self) -> tuple[list[Path], list[Path]]:
        """(those in use, those whose process is gone)."""
        used: list[Path] = []
        stale: list[Path] = []
        for name in _names(self.work):
            pid, _, rest = name.partition("-")
            start = rest.partition("-")[0]
            alive = pid.isdecimal() and start.isdecimal() and process.start_time(int(pid)) == int(start)
            (used if alive else stale).append(self.work / name)
        return used, stale


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file so that after a crash it is the old or the new one. Raises OSError."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with part.open("xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        part.rename(path)
        sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)
