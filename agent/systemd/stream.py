# SPDX-License-Identifier: Apache-2.0
"""A journal stream: an fd that journald reads line by line, as systemd gives services (sd_journal_stream_fd(3))."""

from __future__ import annotations

import fcntl

from systemd import journal as python_systemd

from agent.errors import Unsupported


def open_stream(identifier: str) -> int:
    """A new stream whose entries carry `identifier`; close-on-exec, the caller's to close. Raises Unsupported."""
    try:
        stream = python_systemd.stream(identifier, level_prefix=True)
    except OSError as e:
        raise Unsupported(
            "cannot open a journal stream", why=e.strerror or str(e), hint="systemctl status systemd-journald"
        ) from e
    with stream:
        return fcntl.fcntl(stream.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
