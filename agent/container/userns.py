# SPDX-License-Identifier: Apache-2.0
"""A container's user namespace: which ids it gets (user_namespaces(7)).

`auto` takes the lowest free range of user `containers` in /etc/subuid and /etc/subgid. Each bundle says in its file
`idmap` which ranges it has, so that they are known whoever started it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from agent.definition.model import Container
from agent.errors import CleatError
from agent.oci import idmap
from agent.oci.idmap import Mappings
from agent.paths import Paths

_FILE = "idmap"
_decoder = msgspec.json.Decoder(Mappings)


def is_wanted(container: Container) -> bool:
    return container.security.user_namespace != "host"


def reserve(container: Container, paths: Paths, bundle: Path) -> Mappings:
    """The ids of this incarnation, noted in its bundle. Raises CleatError."""
    security = container.security
    try:
        if security.user_namespace == "auto":
            mappings = idmap.auto(_read("/etc/subuid"), _read("/etc/subgid"), _in_use(paths.bundles))
        else:
            mappings = idmap.of_definition(security.uid_map, security.gid_map)
        (bundle / _FILE).write_bytes(msgspec.json.encode(mappings))
    except CleatError as e:
        e.container = container.name
        raise
    # crun enters the bundle as the container's root: it, and nobody else, may pass through.
    os.chown(bundle, -1, mappings.root[1])
    os.chmod(bundle, 0o710)
    return mappings


def _in_use(bundles: Path) -> Iterator[Mappings]:
    for entry in os.scandir(bundles):
        with suppress(OSError, msgspec.DecodeError):
            yield _decoder.decode(Path(entry.path, _FILE).read_bytes())


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
