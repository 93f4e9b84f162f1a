# SPDX-License-Identifier: Apache-2.0
"""The notify socket of one container: sd_notify(3) from its processes to the agent, as typed messages.

The socket lies alone in a folder, and the folder is mounted read-only into the container, not the socket: so
a socket that is bound anew after an agent restart is what the container sees. The folder's parent must keep
other users of the host out (the socket itself is writable for all, since the container's user may be any).

Over an agent restart the fd stays in the service manager's fd store where there is one (store it as
`notify-NAME`): messages then wait in its queue and none is lost. Without, messages sent while there is no
agent fail at the sender with ECONNREFUSED, and senders that keep a connected socket must connect again;
sd_notify(3) opens one for each call.

Who may speak is decided as systemd does: by the pid in the kernel's SCM_CREDENTIALS, which `accepts` looks
up in the container's cgroup. Of a sender that has ended meanwhile the kernel tells no more; like systemd we
then take its word only when its pid is one we track (the container's init), and short-lived senders use a
barrier (systemd-notify does).
"""

from __future__ import annotations

import array
import asyncio
import os
import secrets
import socket
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import CleatError
from agent.systemd import journal, sockdiag
from agent.systemd.notification import FDS_MAX, MESSAGE_MAX, BadMessage, Notification, parse

if TYPE_CHECKING:
    from collections.abc import Callable

SOCKET_NAME = "notify.sock"
_PER_TURN = 16
_PER_SECOND = 500
_DRAIN_MAX = 1024
_QUIET_SEC = 10.0
_INT = array.array("i").itemsize
_UCRED = struct.Struct("3i")
_ANCILLARY_MAX = socket.CMSG_SPACE(FDS_MAX * _INT) + socket.CMSG_SPACE(_UCRED.size)
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC


class NotifySocket:
    """Binds (or takes over) the socket and reads it in the running loop until close().

    `accepts(pid)` says whether a living process belongs to the container. `on_notification(message, fds)`
    gets each verified message; it owns `fds`, which are there only with message.fd_store. It must not raise.
    Barriers are answered here, after the messages before them were passed on.
    """

    def __init__(
        self,
        folder: str,
        *,
        container: str,
        accepts: Callable[[int], bool],
        on_notification: Callable[[Notification, tuple[int, ...]], None],
        stored_fd: int = -1,
    ) -> None:
        """`stored_fd` is what the service manager kept: taken over, or closed when it is not bound in `folder`.

        Raises CleatError when the socket cannot be made.
        """
        self.folder = folder
        self.container = container
        self.tracked: set[int] = set()
        self._accepts = accepts
        self._on_notification = on_notification
        self._socket = _take_over(folder, stored_fd) or _bind(folder, container)
        self._loop = asyncio.get_running_loop()
        self._resume: asyncio.TimerHandle | None = None
        self._window = 0.0
        self._taken = 0
        self._quiet_until = 0.0
        self._refusals = 0
        self._loop.add_reader(self._socket.fileno(), self._read)

    @property
    def path(self) -> str:
        return f"{self.folder}/{SOCKET_NAME}"

    def fileno(self) -> int:
        """The fd, to be left with the service manager. It stays ours."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop reading. The node stays for whoever binds next; it goes with the folder."""
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def drain(self) -> None:
        """Take what waits now, before the end of its sender is acted on: as systemd reads messages before SIGCHLD."""
        for _ in range(_DRAIN_MAX):
            if not self._read_one():
                return

    def _read(self) -> None:
        """Take a few datagrams, then let others have their turn; a flood waits in the kernel and stops its sender."""
        for _ in range(_PER_TURN):
            if not self._read_one():
                return
            self._taken += 1
        now = self._loop.time()
        if now - self._window > 1.0:
            self._window, self._taken = now, 0
        elif self._taken >= _PER_SECOND and self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._resume = self._loop.call_at(self._window + 1.0, self._read_on)

    def _read_on(self) -> None:
        self._resume = None
        self._window, self._taken = self._loop.time(), 0
        self._loop.add_reader(self._socket.fileno(), self._read)

    def _read_one(self) -> bool:
        """Take one datagram; False when there is none."""
        if self._socket.fileno() < 0:
            return False
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(MESSAGE_MAX, _ANCILLARY_MAX, _FLAGS)
        except (BlockingIOError, InterruptedError):
            return False
        pid, fds = unpack_ancillary(ancillary)
        try:
            message = self._checked(data, pid, len(fds), flags)
            if message is not None and not message.barrier:
                given = tuple(fds) if message.fd_store else ()
                fds = [] if message.fd_store else fds
                self._on_notification(message, given)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _checked(self, data: bytes, pid: int, fds: int, flags: int) -> Notification | None:
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise BadMessage(f"longer than {MESSAGE_MAX} bytes or too many file descriptors")
            if not self._is_sender(pid):
                raise BadMessage("the sender is not, or no longer, a process of the container")
            message = parse(data, fds)
        except BadMessage as e:
            self._tell_refused(pid, str(e))
            return None
        if message.refused:
            self._tell_refused(pid, f"{', '.join(message.refused)} (the rest of the message holds)")
        return message

    def _is_sender(self, pid: int) -> bool:
        if pid <= 0:
            return False
        return self._accepts(pid) or (pid in self.tracked and not _exists(pid))

    def _tell_refused(self, pid: int, reason: str) -> None:
        """Tell the journal, at most every ten seconds."""
        now = self._loop.time()
        if now < self._quiet_until:
            self._refusals += 1
            return
        more = f", {self._refusals} more before" if self._refusals else ""
        self._quiet_until, self._refusals = now + _QUIET_SEC, 0
        journal.send(
            journal.Event.NOTIFY_REFUSED,
            f"{self.container}: notification of process {pid} refused{more}: {reason}",
            container=self.container,
        )


def unpack_ancillary(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, list[int]]:
    """The sender's pid (0 = none given, or one outside our pid namespace) and the passed fds."""
    pid = 0
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _INT])
        elif kind == socket.SCM_CREDENTIALS and len(data) >= _UCRED.size:
            pid = _UCRED.unpack_from(data)[0]
    return pid, list(fds)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _take_over(folder: str, fd: int) -> socket.socket | None:
    """A socket out of the fd store if it is the one that the folder shows; else `fd` is closed."""
    if fd < 0:
        return None
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    found = socket.socket(fileno=fd)
    is_ours = found.family == socket.AF_UNIX and found.type == socket.SOCK_DGRAM
    if is_ours and sockdiag.is_bound_to(fd, f"{folder}/{SOCKET_NAME}"):
        os.set_inheritable(fd, False)  # noqa: FBT003
        found.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        return found
    found.close()
    return None


def _bind(folder: str, container: str) -> socket.socket:
    """Make the folder and the socket. An older node is replaced in one step, so there is one at any time."""
    temporary = f".{secrets.token_hex(4)}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    directory = -1
    try:
        with suppress(FileExistsError):
            Path(folder).mkdir(mode=0o755)
        directory = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        Path(f"/proc/self/fd/{directory}").chmod(0o755)
        # Set first: no datagram may come without its sender's credentials.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        # By way of the folder's fd: sun_path holds 107 bytes, the folder's path may have more.
        sock.bind(f"/proc/self/fd/{directory}/{temporary}")
        os.chmod(temporary, 0o666, dir_fd=directory)
        os.rename(temporary, SOCKET_NAME, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError as e:
        sock.close()
        raise CleatError(
            f"cannot make the notify socket in {folder}", container=container, why=e.strerror or str(e)
        ) from e
    finally:
        if directory >= 0:
            os.close(directory)
    return sock
