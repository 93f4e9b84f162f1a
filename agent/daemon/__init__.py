# SPDX-License-Identifier: Apache-2.0
"""The resident agent: composition root and D-Bus interface."""

import sys
from typing import Any

# asyncio and dbus-next load OpenSSL and GLib where they are installed, and do without where not: 3 MB for nothing.
_modules: dict[str, Any] = sys.modules
for _unused in ("ssl", "gi"):
    _modules.setdefault(_unused, None)
