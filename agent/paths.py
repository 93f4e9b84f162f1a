# SPDX-License-Identifier: Apache-2.0
"""Where things are: the system's folders, or the user manager's (XDG base directories, file-hierarchy(7))."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """All folders of one agent.

    `config` holds cleat.toml and containers/; `runtime` is volatile (tmpfs) and holds bundles, records and
    sockets; `state` is kept over reboots; `vendor` holds the distribution's definitions.
    """

    config: Path
    runtime: Path
    state: Path
    vendor: Path
    overlays: str = "overlay"

    @property
    def agent_config(self) -> Path:
        return self.config / "cleat.toml"

    @property
    def definition_folders(self) -> tuple[Path, ...]:
        """Search path of definitions, first found wins per name."""
        return (self.config / "containers", self.runtime / "containers", self.vendor / "containers")

    @cached_property
    def records(self) -> Path:
        return self.runtime / "records"

    @cached_property
    def bundles(self) -> Path:
        return self.runtime / "b"

    def bundle(self, container_id: str) -> Path:
        """The OCI bundle of one incarnation; pid files, exit folder, attach socket and fifos lie in it too."""
        return self.bundles / container_id

    def overlay(self, container_id: str) -> Path:
        """Upper and work folder of one incarnation's root."""
        return self._overlays / container_id

    @cached_property
    def _overlays(self) -> Path:
        return self.state / self.overlays

    @property
    def executor(self) -> Path:
        """The socket of the executor, cleat-executor.socket."""
        return self.runtime / "executor.sock"

    @property
    def volumes(self) -> Path:
        return self.state / "volumes"

    @property
    def images(self) -> Path:
        return self.state / "images"

    @property
    def logs(self) -> Path:
        return self.state / "logs"


SYSTEM = Paths(
    config=Path("/etc/cleat"),
    runtime=Path("/run/cleat"),
    state=Path("/var/lib/cleat"),
    vendor=Path("/usr/lib/cleat"),
)


def for_user() -> Paths:
    """The folders of the agent under `systemctl --user`."""
    home = Path(os.environ.get("HOME") or "/")
    run = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    return Paths(
        config=Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "cleat",
        runtime=run / "cleat",
        state=Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share") / "cleat",
        vendor=Path("/usr/lib/cleat/user"),
    )


def here() -> Paths:
    """The folders of this process: the system's for root, else the user's."""
    return SYSTEM if os.geteuid() == 0 else for_user()
