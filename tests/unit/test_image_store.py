# SPDX-License-Identifier: Apache-2.0
"""The folder of images: manifests read with suspicion, references that survive, rubbish told from work."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from agent.definition.model import Container, Mount, MountType
from agent.errors import PullFailed
from agent.images import store as stores
from agent.images.policy import Held
from agent.images.reference import parse
from agent.images.skopeo import Lines
from agent.images.store import Store, parse_manifest

A, B, C = ("sha256:" + letter * 64 for letter in "abc")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(tmp_path / "images")
    found.make_folders()
    return found


def manifest(**changes: Any) -> bytes:
    return json.dumps(
        {"config": {"digest": B}, "layers": [{"digest": C, "size": 5, "mediaType": "x.tar+zstd"}], **changes}
    ).encode()


def test_manifest() -> None:
    found = parse_manifest(A, manifest())
    assert found.blobs == {A, B, C}
    assert found.size == 5
    assert found.has_zstd


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{}", b"null", b"{", manifest(layers=5), manifest(layers=[{}]), manifest(config=None),
        manifest(config={"digest": "sha256:../../../etc/passwd"}), manifest(layers=[{"digest": "../x", "size": 1}]),
        manifest(layers=[{"digest": C, "size": "many"}]),
    ],
)  # fmt: skip
def test_malformed_manifests(data: bytes) -> None:
    with pytest.raises(PullFailed):
        parse_manifest(A, data)


def test_references_survive(store: Store, tmp_path: Path) -> None:
    assert store.held == {}
    store.change(lambda held: held.update({"a:1": Held(digest=A)}))
    store.change(lambda held: held.update({"b:1": Held(digest=B, remote_digest=C, size=7)}))
    other = Store(tmp_path / "images")
    assert (
        dict(other.held) == dict(store.held) == {"a:1": Held(digest=A), "b:1": Held(digest=B, remote_digest=C, size=7)}
    )
    other.change(lambda held: held.clear())
    assert store.held == {}
    assert sorted(os.listdir(tmp_path / "images")) == ["blobs", "lock", "references.json", "trees", "work"]


def test_an_unreadable_list_is_an_empty_one(store: Store) -> None:
    (store.folder / "references.json").write_text('{"a": 5}')
    assert store.held == {}
    store.change(lambda held: held.update({"a:1": Held(digest=A)}))
    assert set(store.held) == {"a:1"}


def test_a_tree_counts_when_it_is_whole(store: Store) -> None:
    store.change(lambda held: held.update({"a:1": Held(digest=A), "a:2": Held(digest=A)}))
    assert store.image("a:1") is None
    made = store.work_folder() / "tree"
    (made / "rootfs").mkdir(parents=True)
    (made / "config.json").write_text('{"config": {"Cmd": ["x"]}}')
    store.adopt_tree(made, A)
    first, second = store.image("a:1"), store.image("a:2")
    assert first is not None
    assert second is not None
    assert (first.reference, second.reference) == ("a:1", "a:2")
    assert first.config == {"Cmd": ["x"]}
    assert store.all_trees() == [A]
    store.set_aside(A)
    assert store.image("a:1") is None


def test_a_damaged_blob_goes(store: Store) -> None:
    data = b"{}"
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    path = store.blob_path(digest)
    path.parent.mkdir()
    path.write_bytes(data)
    assert store.read_blob(digest) == data
    assert store.all_blobs() == [digest]
    path.write_bytes(b"other")
    with pytest.raises(PullFailed, match="damaged"):
        store.read_blob(digest)
    assert not path.exists()
    with pytest.raises(PullFailed, match="missing"):
        store.read_blob(digest)


def test_work_of_the_dead_is_rubbish(store: Store) -> None:
    own = store.work_folder()
    for name in ("1-1-abc", "999999999-5-abc", "odd"):
        (store.work / name).mkdir()
    used, stale = store.work_folders()
    assert used == [own]
    assert sorted(path.name for path in stale) == ["1-1-abc", "999999999-5-abc", "odd"]


def test_writing_leaves_no_part_behind(store: Store) -> None:
    target = store.folder / "nowhere" / "file"
    with pytest.raises(OSError, match="No such file"):
        stores.write_durably(target, b"x")


def test_progress_lines() -> None:
    heard: list[str] = []
    lines = Lines(parse("r.example/x:1"), heard.append)
    for part in (
        b"Getting image source signatures\nCopying bl",
        b"ob sha256:1\nCopying blob sha256:2\n",
        b"Writing manifest to",
    ):
        lines.feed(part)
    lines.feed(b" image destination\n" + b"x" * 100_000)
    prefix = "pulling r.example/x:1: "
    assert heard == [f"{prefix}layer 1", f"{prefix}layer 2", f"{prefix}writing"]


def test_volumes_of_images() -> None:
    from agent.container import volumes

    own = Mount(type=MountType.VOLUME, source="own", target="/own")
    container = Container(name="web@1", image="x", mount=(own,))
    found = volumes.of_image(container, ["/own/", "/data", "data/", "/", "", "/../../etc", "/a/../b"])
    assert [mount.target for mount in found] == ["/data", "/etc", "/b"]
    assert len({mount.source for mount in found}) == 3
    assert all(mount.source.startswith("web@1-") for mount in found)
    assert len(volumes.of_image(container, [f"/v{i}" for i in range(1000)])) == 64
