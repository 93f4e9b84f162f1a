# SPDX-License-Identifier: Apache-2.0
"""What an installed runtime can do, and whether its version is safe: judges answers, runs nothing."""

from __future__ import annotations

import re

import msgspec

from agent.errors import Unsupported

Version = tuple[int, ...]


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """What an installed runtime is and can do; `checkpoint_reason` says why not; tell `warnings` once.

    `network_lock` is CheckpointOptions', where criu's usual way, the iptables tools, is not installed.
    """

    path: str
    kind: str
    version: str
    log_json: bool = False
    no_cgroups: bool = False
    checkpoint: bool = False
    checkpoint_reason: str = ""
    network_lock: str = ""
    warnings: tuple[str, ...] = ()


def parse_version(text: str) -> Version:
    """ "1.1.15+ds1" to (1, 1, 15)."""
    match = re.match(r"\d{1,9}(\.\d{1,9})*", text)
    return tuple(map(int, match[0].split("."))) if match else ()


def checkpoint_reason(features: bytes, *, knows_command: bool, has_criu: bool) -> str:
    """Why this runtime cannot checkpoint containers; "" = it can. `features` is its JSON, or empty."""
    if not knows_command:
        return "the runtime has no checkpoint command"
    try:
        annotations = msgspec.json.decode(features).get("annotations") or {}
        enabled = annotations.get("org.opencontainers.runc.checkpoint.enabled", "true")
    except (msgspec.DecodeError, AttributeError):
        enabled = "true"
    if enabled != "true":
        return "the runtime is built without CRIU"
    return "" if has_criu else "criu is not installed"


class _Flaw(msgspec.Struct, frozen=True):
    """A known hole: versions from `since` to before `fixed` have it. `refuse`: nothing may start on it.

    `repaired`: builds of such versions by distributions that do not have it, a regular expression.
    """

    runtime: str
    since: Version
    fixed: Version
    names: str
    effect: str
    refuse: bool = False
    repaired: str = ""


_FLAWS = (
    _Flaw(
        "runc", (0,), (1, 1, 12), "CVE-2024-21626", "containers can get out through leaked fds", refuse=True,
        # Debian 12, changelog of its runc 1.1.5+ds1-1+deb12u1.
        repaired=r"1\.1\.5\+ds1-1\+deb12u[1-9]\d*",
    ),
    _Flaw("runc", (1, 1, 12), (1, 2, 8), "CVE-2025-31133, -52565, -52881", "masked paths can be replaced"),
    _Flaw("runc", (1, 3), (1, 3, 3), "CVE-2025-31133, -52565, -52881", "masked paths can be replaced"),
    _Flaw("crun", (0,), (1, 4, 4), "CVE-2022-27650", "processes get inheritable capabilities", refuse=True),
    _Flaw("crun", (1, 4, 4), (1, 28), "CVE-2026-47766", "an image can replace /dev by a symlink"),
)  # fmt: skip


def judge_version(kind: str, version: Version, build: str = "") -> tuple[str, ...]:
    """Warnings about a version. Distributions repair without raising it: only the worst is Unsupported.

    `build` is what the runtime says as its commit, for Debian's runc the version of the package.
    """
    text = ".".join(map(str, version))
    warnings: list[str] = []
    for flaw in _FLAWS:
        if flaw.runtime != kind or not flaw.since <= version < flaw.fixed:
            continue
        if flaw.repaired and re.fullmatch(flaw.repaired, build):
            continue
        fixed = ".".join(map(str, flaw.fixed))
        if flaw.refuse:
            raise Unsupported(
                f"{kind} {text} is not safe to use",
                why=f"{flaw.names}: {flaw.effect}",
                hint=f"install {kind} {fixed} or newer",
            )
        repaired = f"repaired in {fixed}, or by your distribution's updates"
        warnings.append(f"{kind} {text}: {flaw.names}: {flaw.effect}; {repaired}")
    return tuple(warnings)
