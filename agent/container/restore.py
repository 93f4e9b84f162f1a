# SPDX-License-Identifier: Apache-2.0
"""What a container goes on from instead of starting afresh (checkpoint.py makes and finds it); a value."""

from __future__ import annotations

import msgspec


class Restore(msgspec.Struct, frozen=True, kw_only=True):
    """criu's folder, the container's changes to its root ("" = none), and options for the runtime's restore."""

    image: str
    upper: str = ""
    options: tuple[str, ...] = ()
