# SPDX-License-Identifier: Apache-2.0
"""Reloading by itself when a definition changes."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.daemon.watching import LATEST_SEC, Watch, concerns, events

IN_CREATE, IN_OVERFLOW, IN_ISDIR = 0x100, 0x4000, 0x40000000


def test_events_are_read() -> None:
    one = struct.pack("iIII", 1, 8, 0, 16) + b"web.toml".ljust(16, b"\0")
    two = struct.pack("iIII", 2, IN_OVERFLOW, 0, 0)
    assert list(events(one + two)) == [(8, "web.toml"), (IN_OVERFLOW, "")]


@pytest.mark.parametrize(
    ("mask", "name", "counts"),
    [
        (8, "web.toml", True),
        (8, "web.toml.swp", False),
        (8, ".web.toml", False),
        (8, "web.toml~", False),
        (IN_CREATE | IN_ISDIR, "web.toml.d", True),
        (IN_CREATE | IN_ISDIR, "containers", True),
        (IN_CREATE | IN_ISDIR, "records", False),
        (IN_OVERFLOW, "", True),
    ],
)
def test_what_concerns_definitions(mask: int, name: str, counts: bool) -> None:  # noqa: FBT001 a parameter
    assert concerns(mask, name) is counts


def changes(tmp_path: Path, *steps: Callable[[Path], object]) -> int:
    """How many reloads each step makes in all, each waited for."""
    folder = tmp_path / "cleat" / "containers"
    folder.parent.mkdir()

    async def main() -> int:
        count, changed = 0, asyncio.Event()

        def note() -> None:
            nonlocal count
            count += 1
            changed.set()

        watch = Watch([folder], note)
        watch.start()
        try:
            for step in steps:
                changed.clear()
                step(folder)
                async with asyncio.timeout(LATEST_SEC + 5):
                    await changed.wait()
        finally:
            watch.close()
        return count

    return asyncio.run(main())


def write_ten(folder: Path) -> None:
    for i in range(10):
        (folder / f"c{i}.toml").write_text("")


def replace(folder: Path) -> None:
    (folder / "c0.new").write_text("")
    os.rename(folder / "c0.new", folder / "c0.toml")


def drop_in(folder: Path) -> None:
    (folder / "c1.toml.d" / "x.toml").write_text("")


def test_many_changes_make_one_reload_and_new_folders_count(tmp_path: Path) -> None:
    steps = (
        Path.mkdir,
        write_ten,
        replace,
        lambda f: (f / "c1.toml.d").mkdir(),
        drop_in,
        lambda f: (f / "c2.toml").unlink(),
    )
    assert changes(tmp_path, *steps) == len(steps)
