# SPDX-License-Identifier: Apache-2.0
"""When an image is fetched, and which images may go: decisions on values, pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import Enum, auto

import msgspec

from agent.definition.model import PullPolicy


class Fetch(Enum):
    """What a policy asks for. COMPARE fetches if the registry has another image; PREFER likewise, but takes what is
    here when the registry cannot be asked."""

    NOTHING = auto()
    NOW = auto()
    COMPARE = auto()
    PREFER = auto()
    REFUSE = auto()


def decide(policy: PullPolicy, *, is_here: bool, is_fixed: bool) -> Fetch:
    """podman-pull(1), --policy. What is named by its digest cannot change, so nobody needs to be asked about it."""
    if not is_here:
        return Fetch.REFUSE if policy is PullPolicy.NEVER else Fetch.NOW
    if is_fixed:
        return Fetch.NOTHING
    match policy:
        case PullPolicy.MISSING | PullPolicy.NEVER:
            return Fetch.NOTHING
        case PullPolicy.ALWAYS:
            return Fetch.COMPARE
        case PullPolicy.NEWER:
            return Fetch.PREFER


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What a reference meant when it was last fetched. `digest` is of the manifest as it is stored here;
    `remote_digest` of the one that the registry names, an index for several architectures ("" = not asked yet).
    `fetched_at` in Unix seconds; `size` of the compressed layers in bytes."""

    digest: str
    remote_digest: str = ""
    fetched_at: float = 0.0
    size: int = 0


class Removal(msgspec.Struct, frozen=True):
    """What can go: references to forget, trees and blobs (by digest) to remove."""

    references: tuple[str, ...]
    trees: tuple[str, ...]
    blobs: tuple[str, ...]


def removable(
    held: Mapping[str, Held],
    needed_references: Collection[str],
    digests_in_use: Collection[str],
    trees: Iterable[str],
    blobs: Iterable[str],
    blobs_of: Mapping[str, Collection[str]],
) -> Removal:
    """Everything that no definition names and no container runs on.

    `blobs_of` names the blobs that belong to each stored manifest, the manifest itself included. The tree of a running
    container stays even if its reference means something newer by now; its blobs are of no more use.
    """
    forgotten = sorted(set(held) - set(needed_references))
    kept = {one.digest for reference, one in held.items() if reference in needed_references}
    kept_blobs = {blob for digest in kept for blob in blobs_of.get(digest, ())}
    return Removal(
        references=tuple(forgotten),
        trees=tuple(sorted(set(trees) - kept - set(digests_in_use))),
        blobs=tuple(sorted(set(blobs) - kept_blobs)),
    )
