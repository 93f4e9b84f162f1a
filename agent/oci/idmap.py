# SPDX-License-Identifier: Apache-2.0
"""Id mappings of user namespaces (user_namespaces(7)): as given, or allocated by subuid(5) and subgid(5)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from agent.errors import InvalidArgument, Unsupported
from agent.oci.inputs import IdMapping
from agent.spawn.userns import Ranges

# Whose ranges in /etc/subuid and /etc/subgid `auto` uses: podman-run(1), --userns=auto.
AUTO_USER = "containers"
AUTO_SIZE = 65536

_MAX_ID = (1 << 32) - 1
_MAX_LINES = 340  # the kernel's limit on lines in uid_map


class Mappings(msgspec.Struct, frozen=True):
    """Both maps of one user namespace; empty ones mean none of its own."""

    uids: tuple[IdMapping, ...] = ()
    gids: tuple[IdMapping, ...] = ()

    @property
    def root(self) -> tuple[int, int]:
        """The host's (uid, gid) of the container's root, which must own its root file system."""
        return to_host(0, self.uids), to_host(0, self.gids)


def parse(entries: Sequence[str], key: str) -> tuple[IdMapping, ...]:
    """ "CONTAINER_ID:HOST_ID:SIZE" each. Raises InvalidArgument for bad numbers and overlapping ranges."""
    if len(entries) > _MAX_LINES:
        raise InvalidArgument(f"{len(entries)} ranges", key=key, why=f"the kernel takes {_MAX_LINES} at most")
    mappings = tuple(_parse(entry, key) for entry in entries)
    _check_overlap([(m.container_id, m.size) for m in mappings], "in the container", key)
    _check_overlap([(m.host_id, m.size) for m in mappings], "on the host", key)
    return mappings


def _parse(entry: str, key: str) -> IdMapping:
    parts = entry.split(":")
    fine = len(parts) == 3 and all(p.isascii() and p.isdecimal() and len(p) <= 10 for p in parts)
    container_id, host_id, size = map(int, parts) if fine else (0, 0, 0)
    if not size or container_id + size > _MAX_ID or host_id + size > _MAX_ID:
        raise InvalidArgument(f"{entry!r} is no id mapping", key=key, hint='write "CONTAINER_ID:HOST_ID:SIZE"')
    return IdMapping(container_id, host_id, size)


def _check_overlap(ranges: Iterable[tuple[int, int]], where: str, key: str) -> None:
    end = 0
    for first, size in sorted(ranges):
        if first < end:
            raise InvalidArgument(f"id {first} is mapped twice {where}", key=key)
        end = first + size


def to_host(container_id: int, mappings: Iterable[IdMapping]) -> int:
    """The host's id of one of the container's. Raises InvalidArgument when it is not mapped."""
    for m in mappings:
        if m.container_id <= container_id < m.container_id + m.size:
            return m.host_id + container_id - m.container_id
    raise InvalidArgument(
        f"id {container_id} of the container is not mapped to the host",
        key="security.uid_map",
        hint="add a range that holds it",
    )


def of_definition(uid_map: Sequence[str], gid_map: Sequence[str]) -> Mappings:
    """`user_namespace = "map"`: gid_map is uid_map when it is not given. Root must be mapped."""
    uids = parse(uid_map, "security.uid_map")
    gids = parse(gid_map, "security.gid_map") if gid_map else uids
    if not uids:
        raise InvalidArgument("there is no mapping", key="security.uid_map", hint='uid_map = ["0:100000:65536"]')
    mappings = Mappings(uids, gids)
    _ = mappings.root
    return mappings


def sub_ranges(text: str, user: str, uid: int | None = None) -> list[tuple[int, int]]:
    """(first, count) of a user's lines in subuid(5); the user is given by name or, there, also by number."""
    names = {user, str(uid)} if uid is not None else {user}
    found: list[tuple[int, int]] = []
    for line in text.splitlines():
        name, _, numbers = line.strip().partition(":")
        first, _, count = numbers.partition(":")
        fine = all(n.isascii() and n.isdecimal() and len(n) <= 10 for n in (first, count))
        if name in names and fine and int(count) and int(first) + int(count) <= _MAX_ID + 1:
            found.append((int(first), int(count)))
    return found


def auto(subuid: str, subgid: str, in_use: Iterable[Mappings], *, size: int = AUTO_SIZE) -> Mappings:
    """A range of `size` ids that no other container has: the lowest free one, for uids and gids each.

    `in_use` are the mappings of all other containers. Raises Unsupported when the ranges are missing or used
    up.
    """
    used = list(in_use)
    uid = _free(sub_ranges(subuid, AUTO_USER), [m for one in used for m in one.uids], size)
    gid = _free(sub_ranges(subgid, AUTO_USER), [m for one in used for m in one.gids], size)
    for first, file in ((uid, "/etc/subuid"), (gid, "/etc/subgid")):
        if first is None:
            raise Unsupported(
                f"there are no {size} free ids for {AUTO_USER} in {file}",
                key="security.user_namespace",
                hint=f"add a line such as {AUTO_USER}:2147483647:2147483648 to {file}",
            )
    assert uid is not None
    assert gid is not None
    return Mappings((IdMapping(0, uid, size),), (IdMapping(0, gid, size),))


def _free(ranges: Iterable[tuple[int, int]], used: Iterable[IdMapping], size: int) -> int | None:
    taken = sorted((m.host_id, m.host_id + m.size) for m in used)
    for first, count in sorted(ranges):
        start = first
        for begin, end in taken:
            if begin >= start + size:
                break
            start = max(start, end)
        if start + size <= first + count:
            return start
    return None


def for_user(uid: int, gid: int, user: str, subuid: str, subgid: str) -> Mappings:
    """Without root: the caller is the container's root, their subordinate ids are the ids from 1 on."""
    return Mappings(
        (IdMapping(0, uid, 1), *_stacked(sub_ranges(subuid, user, uid))),
        (IdMapping(0, gid, 1), *_stacked(sub_ranges(subgid, user, uid))),
    )


def _stacked(ranges: Iterable[tuple[int, int]]) -> Iterable[IdMapping]:
    start = 1
    for first, count in ranges:
        yield IdMapping(start, first, count)
        start += count


def as_ranges(mappings: Iterable[IdMapping]) -> Ranges:
    """As user namespaces are asked for."""
    return tuple((m.container_id, m.host_id, m.size) for m in mappings)
