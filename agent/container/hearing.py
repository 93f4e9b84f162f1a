# SPDX-License-Identifier: Apache-2.0
"""What one run's payload says by sd_notify(3): its socket, the text for people, the fds to keep.

What a message means for the course of the run (ready, stopping, deadlines) is the run's business.
"""

from __future__ import annotations

import asyncio
import math
import os
from typing import TYPE_CHECKING

from agent import cgroup
from agent.container import launch
from agent.container.events import Notified
from agent.systemd import journal
from agent.systemd.fd_store import own_name
from agent.systemd.notification import Notification
from agent.systemd.notify_socket import NotifySocket

if TYPE_CHECKING:
    from agent.container.run import Run

_SAVE_SEC = 0.1


class Hearing:
    """Posts Notified events to `run` while it is open."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._owner = run.owner
        self._text = run.owner.status_text
        self._errno = 0
        self._socket: NotifySocket | None = None
        self._saving: asyncio.TimerHandle | None = None
        self._saved_at = -math.inf

    @property
    def _stored_as(self) -> str:
        return own_name("notify", self._run.running.id, self._owner.name)

    def open(self) -> None:
        """Bind the socket, or take over a former agent's. Nothing happens when it is open. Raises CleatError."""
        host, running = self._owner.host, self._run.running
        folder = launch.notify_folder(host, self._owner.definition.container, running.id)
        if not folder or self._socket is not None:
            return
        self._socket = NotifySocket(
            folder,
            container=self._owner.name,
            accepts=lambda pid: cgroup.contains(running.payload_cgroup, pid),
            on_notification=lambda message, fds: self._run.post(Notified(message, fds)),
            stored_fd=host.fd_store.take(self._stored_as),
        )
        self._socket.tracked.add(running.payload.pid)
        host.fd_store.store(self._stored_as, self._socket.fileno())

    def drain(self) -> None:
        """Post what was said before the end."""
        if self._socket is not None:
            self._socket.drain()

    def forget(self) -> None:
        """The run has ended: no later agent needs the socket."""
        if self._socket is not None:
            self._owner.host.fd_store.forget(self._stored_as)

    def close(self) -> None:
        if self._saving is not None:
            self._saving.cancel()
        if self._socket is not None:
            self._socket.close()

    def take_text(self, message: Notification) -> None:
        """STATUS= and ERRNO=: one line for people."""
        if message.status is None and message.errno is None:
            return
        self._text = self._text if message.status is None else message.status
        if message.errno is not None:
            self._errno = message.errno
            self._owner.tell_handle(f"ERRNO={message.errno}")
        error = f"error {self._errno}: {os.strerror(self._errno)}" if self._errno else ""
        text = f"{self._text} ({error})" if self._text and error else self._text or error
        if text != self._owner.status_text:
            self._owner.set_status_text(text)
            self.save_soon()

    def keep_fds(self, message: Notification, fds: tuple[int, ...]) -> None:
        """FDSTORE=1 and FDSTOREREMOVE=1."""
        if not message.fd_store and not message.fd_store_remove:
            return
        most = self._owner.definition.container.service.file_descriptor_store_max
        refused = self._owner.listening.kept.hear(message, fds, most)
        if refused:
            text = f"{self._owner.name}: {refused} file descriptors not kept: file_descriptor_store_max is {most}"
            self._owner.event(journal.Event.NOTIFY_REFUSED, text)

    def save_soon(self) -> None:
        """Store what a payload says, which it may do often: at once, but no more than ten times a second."""
        if self._saving is not None:
            return
        loop = asyncio.get_running_loop()
        wait = self._saved_at + _SAVE_SEC - loop.time()
        if wait > 0:
            self._saving = loop.call_later(wait, self._save_now)
        else:
            self._save_now()

    def _save_now(self) -> None:
        self._saving = None
        self._saved_at = asyncio.get_running_loop().time()
        self._owner.save()
