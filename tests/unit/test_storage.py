# SPDX-License-Identifier: Apache-2.0
"""Trees of files below the agent's folders."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from agent import storage
from agent.spawn.mounts import file_system_of


def test_scattering_is_for_ext4_and_harmless_elsewhere(tmp_path: Path) -> None:
    storage.scatter(tmp_path)
    storage.scatter(tmp_path)
    storage.scatter(tmp_path / "missing")
    if file_system_of(str(tmp_path)) == "ext4":
        fd = os.open(tmp_path, os.O_RDONLY)
        (flags,) = struct.unpack("l", fcntl.ioctl(fd, 0x80086601, bytes(8)))
        os.close(fd)
        assert flags & 0x20000
