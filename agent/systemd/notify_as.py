# SPDX-License-Identifier: Apache-2.0
"""What the service manager is told on behalf of other processes."""

from __future__ import annotations

from agent.systemd.datagram import Datagrams
from agent.systemd.notification import MESSAGE_MAX

SYSTEM_MANAGER = "/run/systemd/notify"


def send_as(pid: int, text: str, *, address: str = SYSTEM_MANAGER) -> bool:
    """Tell the service manager `text` (assignments, one per line) as if process `pid` had said it.

    For the handles cleat@NAME.service, whose processes do not speak for themselves. The manager attributes a
    message to the unit of the pid in its SCM_CREDENTIALS, and the kernel lets CAP_SYS_ADMIN name any living
    process (unix(7)); an agent without it (a user's) gets False. Does not block.
    """
    socket = Datagrams(address)
    try:
        socket.send(encoded(text), pid=pid)
    except OSError:
        return False
    finally:
        socket.close()
    return True


def encoded(text: str) -> bytes:
    """As one datagram that the manager takes, cut off where it would be too long."""
    return text.encode(errors="backslashreplace")[:MESSAGE_MAX].decode(errors="ignore").encode()
