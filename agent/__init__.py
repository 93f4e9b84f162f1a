# SPDX-License-Identifier: Apache-2.0
"""cleat: containers made fast to systemd."""

from __future__ import annotations

__version__ = "0.1.0"
