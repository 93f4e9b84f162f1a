# SPDX-License-Identifier: Apache-2.0
"""What `runtime.args` may not have: global arguments that are given to every runtime anyway (crun(1), runc(8)).

A second one would win over the first, and the container could not be found, told about or ended any more. crun takes
an option's unambiguous beginning for the option, runc takes it with one dash.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agent.definition.model import Container
from agent.definition.parse import Problem
from agent.definition.values import shown

_STATE = "remove it; the state of runtimes is below the agent's runtime folder"
_LOG = "remove it; why a runtime failed is in cleat status and in the journal"
_CGROUP = "remove it, and set mode and manager in [cgroup]"
_OWN = {"root": _STATE, "log": _LOG, "log-format": _LOG, "systemd-cgroup": _CGROUP, "cgroup-manager": _CGROUP}
_OTHERS = frozenset({"log-level", "rootless"})


def check_runtime_args(container: Container, raw: Any) -> Iterator[Problem]:
    for i, word in enumerate(container.runtime.args):
        option = _own_option(word)
        if option:
            yield Problem(("runtime", "args", i), f"{shown(word)}: the agent itself sets --{option}", _OWN[option])


def _own_option(word: str) -> str:
    """The option of the agent's that a word is, or is the beginning of; "" for none."""
    name = word.lstrip("-").partition("=")[0]
    if not word.startswith("-") or not name or name in _OTHERS:
        return ""
    return name if name in _OWN else next((own for own in _OWN if own.startswith(name)), "")
