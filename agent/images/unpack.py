# SPDX-License-Identifier: Apache-2.0
"""umoci(1): layers to a tree. It applies whiteouts, hard links, xattrs and device nodes, and stays inside the root.

`umoci raw unpack` is used: the bundle and the mtree manifest of `umoci unpack` would be made for nothing.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from agent.errors import CommandNotFound, DeadlineExceeded, PullFailed, Unsupported
from agent.images import failure, skopeo
from agent.images.reference import Reference
from agent.images.store import Manifest, Store
from agent.spawn import tool
from agent.spawn.mapped import Mapped
from agent.spawn.spawner import HERE, Spawner

_TIMEOUT = 1800.0
_REMOVE_TIMEOUT = 300.0
_NO_IDS = re.compile(r"^(unshare|newuidmap|newgidmap): |chown.*invalid argument", re.IGNORECASE)
_ID_HINT = (
    "check your ranges in /etc/subuid and /etc/subgid; "
    "sysctl user.max_user_namespaces kernel.apparmor_restrict_unprivileged_userns"
)
_DAMAGED = ("digest", "verif", "unexpected eof", "gzip", "corrupt", "invalid checksum")


async def unpack(store: Store, reference: Reference, manifest: Manifest, spawner: Spawner, files: Spawner) -> None:
    """Unpack into trees/ unless it is there. The work folder is removed whatever happens. Raises PullFailed."""
    if store.unpacked(str(reference), manifest.digest) is not None:
        return
    work = store.work_folder()
    try:
        made = work / "tree"
        made.mkdir(mode=0o700)
        layout = await _layout(store, reference, manifest, work)
        await _run_umoci(store, reference, manifest, layout, made / "rootfs", spawner)
        (made / "config.json").write_bytes(store.read_blob(manifest.config))
        await _sync(made)
        store.adopt_tree(made, manifest.digest)
    finally:
        await remove(work, spawner=files)


async def _layout(store: Store, reference: Reference, manifest: Manifest, work: Path) -> Path:
    """An OCI layout of one image over the shared blobs; layers that umoci cannot read are packed anew."""
    layout = work / "layout"
    layout.mkdir()
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (layout / "blobs").symlink_to(store.blobs)
    (layout / "index.json").write_bytes(_index(manifest, len(store.read_blob(manifest.digest))))
    if not manifest.has_zstd:
        return layout
    packed = work / "gzip"
    result = await skopeo.run(skopeo.gzip_arguments(layout, packed, work), reference, _TIMEOUT)
    if result.returncode != 0:
        raise failure.classify(result.stderr.decode(errors="replace"), str(reference))[0]
    return packed


def _index(manifest: Manifest, size: int) -> bytes:
    return (
        '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",'
        f'"digest":"{manifest.digest}","size":{size},'
        f'"annotations":{{"org.opencontainers.image.ref.name":"{skopeo.IMAGE_TAG}"}}}}]}}'
    ).encode()


async def _run_umoci(
    store: Store, reference: Reference, manifest: Manifest, layout: Path, target: Path, spawner: Spawner
) -> None:
    # Owners are kept where there are ids for them.
    rootless = ["--rootless"] if isinstance(spawner, Mapped) and spawner.is_alone else []
    argv = ["umoci", "raw", "unpack", *rootless, "--image", f"{layout}:{skopeo.IMAGE_TAG}", os.fspath(target)]
    try:
        result = await tool.run(argv, timeout=_TIMEOUT, spawner=spawner)
    except DeadlineExceeded as e:
        raise PullFailed(f"{reference} was not unpacked within {_TIMEOUT:g} s", why=e.why[-300:]) from e
    except CommandNotFound as e:
        raise Unsupported("images need umoci", why=e.why, key="image", hint="install umoci, or use rootfs") from e
    if result.returncode == 0:
        return
    text = result.stderr.decode(errors="replace")
    why = failure.words(text)
    if any(word in why.lower() for word in _DAMAGED):
        # A blob that was cut off by a crash would be taken for good again and again.
        store.drop_blobs(list(manifest.layers))
    if "no space left" in why or "quota exceeded" in why:
        raise failure.classify(text, str(reference))[0]
    hint = _ID_HINT if _NO_IDS.search(why) else "fetch it again: cleat pull NAME"
    raise PullFailed(f"{reference} cannot be unpacked", why=why, hint=hint)


async def _sync(folder: Path) -> None:
    """To disk, before its name says that it is whole (syncfs(2)). Raises PullFailed."""
    result = await tool.run(["sync", "--file-system", os.fspath(folder)], timeout=_REMOVE_TIMEOUT)
    if result.returncode != 0:
        raise PullFailed("the image cannot be written to disk", why=result.text)


async def remove(*folders: Path, spawner: Spawner = HERE) -> None:
    """Remove folders of ours; what cannot be removed now is rubbish for the next time."""
    present = [os.fspath(folder) for folder in folders if folder.exists()]
    if present:
        await tool.run(["rm", "-rf", "--one-file-system", "--", *present], timeout=_REMOVE_TIMEOUT, spawner=spawner)
