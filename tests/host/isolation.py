# SPDX-License-Identifier: Apache-2.0
"""What tests of a container's isolation share: its spec on the host, and root folders that can be shifted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.host.hosts import Host

Json = dict[str, Any]


def spec(host: Host, name: str) -> Json:
    """The config.json that the running container was made from."""
    found: Json = json.loads(host.read(f"/run/cleat/b/{host.status(name)['id']}/config.json"))
    return found


def shiftable_rootfs(host: Host, name: str) -> str:
    """A root folder on a file system that a user namespace's owners can be mapped on (an overlay is none)."""
    made = host.rootfs(name)
    path = f"/var/lib/containers/{name}"
    host.run(["sh", "-c", '[ -d "$2" ] || cp -a "$1" "$2"', "sh", made, path])
    return path


def definition(host: Host, name: str, toml: str = "", *, runtime: str = "crun") -> None:
    """A container that does nothing, unless `toml` (keys of the top level first, then tables) says otherwise."""
    before, bracket, after = f"\n{toml.strip()}\n".partition("\n[")
    loop = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"
    defaults = {"command": json.dumps(["/bin/sh", "-c", loop]), "rootfs": f'"{host.rootfs("isolated")}"'}
    keys = [f"{key} = {value}" for key, value in defaults.items() if f"\n{key} = " not in before]
    host.definition(name, "\n".join([*keys, before, "[runtime]", f'name = "{runtime}"', bracket + after]))


def running(host: Host, name: str, toml: str = "", *, runtime: str = "crun") -> int:
    """Such a container, up; gives the pid of its first process."""
    definition(host, name, toml, runtime=runtime)
    host.reload()
    host.wait_event(name, "ready")
    return int(host.status(name)["pid"])


def refusals(host: Host, definitions: Mapping[str, str], *, runtime: str = "crun") -> dict[str, str]:
    """Why containers do not start, by name and in the words that a user sees; "" for one that runs."""
    for name, toml in definitions.items():
        keys, bracket, tables = toml.partition("[service]")
        table = bracket or "\n[service]"
        definition(host, name, f'{keys}{table}\nrestart = "no"\n{tables}', runtime=runtime)
    host.cleat("reload-agent", check=False)
    return {status["name"]: status["error"] for status in host.status() if status["name"] in definitions}


def exec_in(host: Host, name: str, script: str, *options: str) -> str:
    """What a shell script says that is executed in the container."""
    return host.cleat("exec", *options, name, "--", "sh", "-c", script).stdout
