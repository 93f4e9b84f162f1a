# SPDX-License-Identifier: Apache-2.0
"""Driving one conmon: spawn it with exact fds, hold it at its start pipe, release it, hear what became of it.

Facts are from conmon's src/conmon.c: it reads the start pipe once before it forks (an end of file counts as go), its
first process writes the pid file and exits 0, and the forked one reports on the sync pipe in JSON lines.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from agent import files
from agent.errors import CleatError, ConmonFailed, DeadlineExceeded
from agent.process import Process, ProcessRef, pidfd_ready
from agent.spawn.request import OWN_NULL, Mount, Request
from agent.spawn.spawner import Spawner

_PACKET = 1 << 16
_STDERR_CAP = 8192
_FORK_DEADLINE = 5.0


class SyncMessage(msgspec.Struct, frozen=True):
    """`data`: the payload's pid, or negative on failure; for exec its exit code too. `message`: the runtime's words."""

    data: int
    message: str = ""


class ExitFile(msgspec.Struct, frozen=True):
    """What conmon wrote at the end: exit code (0-255, 128+signal, -1 = timed out or unknown) and when."""

    code: int
    finished_at: float


class _Pair:
    """One of conmon's pipes: a SEQPACKET pair, our end non-blocking, its end handed over at the spawn."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)  # noqa: FBT003 its only form

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class Monitor:
    """A conmon that is being started. Closing it drops our ends of the pipes; it does not end conmon."""

    def __init__(self, process: Process, sync: _Pair, start: _Pair, attach: _Pair | None, stderr: int) -> None:
        self.process = process
        self._sync = sync
        self._start = start
        self._attach = attach
        self._stderr = stderr
        self._is_released = False

    @classmethod
    async def spawn(
        cls,
        spawner: Spawner,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        cover: str = "",
        runtime: str = "",
        mounts: tuple[Mount, ...] = (),
        listen_fds: Sequence[int] = (),
        stdio: tuple[int, int] | None = None,
        stdin: int = -1,
        attach: bool = False,
    ) -> Monitor:
        """Start conmon; it waits until release(). fds: 0-2, the sockets passed on, sync, start and maybe attach pipe.

        With `cover` it is in a mount namespace with `mounts` in it and `runtime` read-only (spawn.request.Request).
        With `stdio` (the passthrough log driver) stdout and stderr are the container's own, and `stdin` may be; else
        what conmon says before it has a log is kept for early_words(). Raises CleatError, OSError.
        """
        sync, start = _Pair(), _Pair()
        pairs = [sync, start]
        attach_pair = _Pair() if attach else None
        if attach_pair is not None:
            pairs.append(attach_pair)
        stderr = os.memfd_create("conmon-stderr", os.MFD_CLOEXEC)
        out, err = stdio or (OWN_NULL, stderr)
        table = (stdin if stdin >= 0 else OWN_NULL, out, err, *listen_fds, *(pair.theirs.fileno() for pair in pairs))
        given = [fd for fd in table if fd != OWN_NULL]
        places = iter(range(len(given)))
        fds = tuple(OWN_NULL if fd == OWN_NULL else next(places) for fd in table)
        try:
            request = Request(argv=tuple(argv), env=env, fds=fds, cover=cover, mounts=mounts, unwritable=runtime)
            process = await spawner.spawn(request, given)
        except BaseException:
            for pair in pairs:
                pair.close()
            os.close(stderr)
            raise
        for pair in pairs:
            pair.theirs.close()
        return cls(process, sync, start, attach_pair, stderr)

    def release(self) -> None:
        """The byte on the start pipe: conmon goes on. For exec the second call starts the command."""
        self._is_released = True
        with suppress(OSError):  # conmon is gone: its exit code and words say why
            self._start.ours.send(b"\0")

    async def forked(self) -> None:
        """Wait until conmon's first process has ended. Raises ConmonFailed with its words when it refused."""
        code = await self.process.wait()
        if code != 0:
            raise ConmonFailed(f"conmon exited with status {code}", why=self.early_words(), hint="journalctl -t conmon")

    async def reap(self) -> None:
        """See conmon's first process gone, which has to be before close(): a closed pipe is a go.

        By force where it waits for its release; else it is let write the pid file of its fork, which takes it no time.
        """
        if self._is_released:
            with suppress(TimeoutError, CleatError):
                async with asyncio.timeout(_FORK_DEADLINE):
                    await self.process.wait()
        await self.process.reap()

    async def message(self) -> SyncMessage | None:
        """The next message on the sync pipe; None at its end (conmon had nothing to say)."""
        return await _receive(self._sync.ours)

    async def attach_ready(self) -> None:
        """Wait until the attach socket of an exec session exists."""
        assert self._attach is not None
        if await _receive(self._attach.ours) is None:
            raise ConmonFailed("conmon ended before the attach socket was there")

    def early_words(self) -> str:
        """What conmon wrote to stderr before it forked, capped."""
        if self._stderr < 0:
            return ""
        return os.pread(self._stderr, _STDERR_CAP, 0).decode(errors="replace").strip()

    def close(self) -> None:
        for pair in (self._sync, self._start, self._attach):
            if pair is not None:
                pair.close()
        if self._stderr >= 0:
            os.close(self._stderr)
            self._stderr = -1


async def _receive(sock: socket.socket) -> SyncMessage | None:
    loop = asyncio.get_running_loop()
    try:
        data = await loop.sock_recv(sock, _PACKET)
    except ConnectionResetError:
        return None
    if not data.strip(b"\0\n "):
        return None
    return parse_message(data)


def parse_message(data: bytes) -> SyncMessage:
    """A line of the sync pipe. conmon escapes control characters only, so other bytes are decoded leniently."""
    text = data.decode(errors="replace").strip("\0\n ")
    try:
        return msgspec.json.decode(text, type=SyncMessage)
    except msgspec.MsgspecError:
        # Older conmons leave some control characters bare, which strict JSON does not allow.
        cleaned = "".join(char if char.isprintable() else " " for char in text)
        try:
            return msgspec.json.decode(cleaned, type=SyncMessage)
        except msgspec.MsgspecError as e:
            raise ConmonFailed("conmon's message could not be read", why=f"{e}: {cleaned[:200]}") from e


def read_pid(path: str) -> ProcessRef | None:
    """The live process that a pid file names; None without file, with nonsense in it or with the process gone."""
    try:
        pid = int(files.read(path))
    except (OSError, ValueError):
        return None
    return ProcessRef.of(pid) if pid > 0 else None


def read_exit_file(exit_dir: str, container_id: str) -> ExitFile | None:
    """conmon's exit file; None when there is none (yet)."""
    path = Path(exit_dir, container_id)
    try:
        text = path.read_text()
        return ExitFile(int(text), path.stat().st_mtime)
    except (OSError, ValueError):
        return None


def was_oom_killed(persist_dir: str) -> bool:
    """Whether conmon saw the kernel's OOM killer in the container (its `oom` file)."""
    return Path(persist_dir, "oom").exists()


async def wait_ended(pidfd: int, *, deadline: float) -> None:
    """Wait for a conmon that is not our child to be gone. Raises DeadlineExceeded."""
    try:
        async with asyncio.timeout(deadline):
            await pidfd_ready(pidfd)
    except TimeoutError as e:
        raise DeadlineExceeded(f"conmon did not end within {deadline:g} s") from e
