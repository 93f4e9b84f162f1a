# SPDX-License-Identifier: Apache-2.0
"""Bytes between the caller's stdio and conmon's attach socket, with one poll loop and no buffer that grows.

conmon(8)'s socket is SEQPACKET: each packet out of it is a stream number (2 stdout, 3 stderr) and up to 8192
bytes; into it go raw bytes, at most 32768 per packet; half-closing it closes the container's stdin. A line
"1 HEIGHT WIDTH" into the ctl fifo resizes the terminal.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.cli import terminal
from agent.errors import AccessDenied, CleatError, InvalidState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.cli.answer import Answer

_PACKET_IN = 8192
_PACKET_OUT = 8192 + 1
_SUN_PATH_MAX = 107  # unix(7)
_AFTER_END_SEC = 5.0  # output that is still under way when the exit code is known
_AWAY_SEC = 60.0  # an agent that was there before the end may be just restarting
_RESIZE_RETRY_SEC, _RESIZE_PATIENCE_SEC = 0.05, 5.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class End(Enum):
    """Why the pump stopped."""

    EXITED = "exited"
    DETACHED = "detached"
    SIGNALLED = "signalled"


def connect(path: str) -> socket.socket:
    """A connection to an attach socket; through /proc when its path is too long for a socket address."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        if len(os.fsencode(path)) <= _SUN_PATH_MAX:
            link.connect(path)
        else:
            folder = os.open(Path(path).parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                link.connect(f"/proc/self/fd/{folder}/{Path(path).name}")
            finally:
                os.close(folder)
    except PermissionError as error:
        link.close()
        raise AccessDenied("cannot attach", why=error.strerror or "", hint="run it as root or with sudo") from error
    except OSError as error:
        link.close()
        raise InvalidState("cannot attach", why=error.strerror or "", hint="see cleat status") from error
    link.settimeout(0)
    return link


@contextlib.contextmanager
def caught_signals(*more: signal.Signals) -> Iterator[int]:
    """An fd from which the numbers of signals that arrive can be read, while inside."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = {number: signal.signal(number, lambda *_: None) for number in (*SIGNALS, *more)}
    old_fd = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(old_fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


class Pump:
    """One attached session.

    `answer` will be the exit code. `on_signal` gets signals that are meant for the command and says whether to go on.
    """

    def __init__(
        self,
        link: socket.socket,
        answer: Answer,
        *,
        ctl: str,
        stdin: bool,
        is_terminal: bool,
        detach_keys: bytes,
        on_signal: Callable[[int], bool],
        patience: float | None = None,
    ) -> None:
        """`patience` is how long output may wait for its reader, in seconds; None = for ever."""
        self._link = link
        self._answer = answer
        self._ctl = ctl if is_terminal else ""
        self._read_stdin = stdin
        self._keys = terminal.KeyMatcher(detach_keys if os.isatty(0) else b"")
        self._on_signal = on_signal
        self._patience = patience
        self._pending = b""
        self._attached = True
        self._broken: set[int] = set()
        self._resize_until = time.monotonic() + _RESIZE_PATIENCE_SEC if self._ctl else 0.0
        self._away_until = 0.0
        self.end: End | None = None
        self.signal = 0
        self.code: int | CleatError | None = None
        self.failure: CleatError | None = None

    def run(self) -> End:
        with caught_signals(signal.SIGWINCH) as signals:
            self._resize()
            self._take_answer()
            while self.end is None:
                self._step(signals)
        return self.end

    def _step(self, signals: int) -> None:
        poll = select.poll()
        poll.register(signals, select.POLLIN)
        if self.code is None:
            poll.register(self._answer, select.POLLIN)
        if self._attached:
            poll.register(self._link, select.POLLIN | (select.POLLOUT if self._pending else 0))
        if self._read_stdin and self._attached and not self._pending:
            poll.register(0, select.POLLIN)
        ready = dict(poll.poll(self._timeout()))
        if signals in ready:
            self._signals(signals)
        if self._resize_until:
            self._resize()
        if self._link.fileno() in ready:
            self._output()
        if 0 in ready and self._read_stdin:
            self._input()
        if self._pending and self._attached:  # never an empty packet: to conmon that is the end of input
            self._send()
        if self.code is None and self._answer.fileno() in ready:
            self._take_answer()
        if self.code is None and not self._attached and self._answer.away is not None:
            self._wait_for_agent(self._answer.away)
        if self.end is None and self._is_over(quiet=not ready):
            self.end = End.EXITED

    def _is_over(self, *, quiet: bool) -> bool:
        """Both output and exit code are here; or the code is, and `quiet` says that no more output came.

        An error instead of the code (the agent went away) ends nothing as long as conmon is there.
        """
        if not self._attached:
            return self.code is not None
        return quiet and isinstance(self.code, int) and not self._resize_until

    def _timeout(self) -> float | None:
        """Milliseconds: short while a resize is tried again, bounded once the exit code is known."""
        if self._resize_until:
            return _RESIZE_RETRY_SEC * 1000
        if self._away_until:
            return max(0.0, self._away_until - time.monotonic()) * 1000
        return _AFTER_END_SEC * 1000 if isinstance(self.code, int) else None

    def _signals(self, fd: int) -> None:
        for number in os.read(fd, 64):
            if number == signal.SIGWINCH:
                self._resize_until = time.monotonic() + _RESIZE_PATIENCE_SEC if self._ctl else 0.0
            elif isinstance(self.code, CleatError) or self._answer.away or not self._on_signal(number):
                self.signal = number
                self.end = End.SIGNALLED

    def _resize(self) -> None:
        """Tell conmon the size; it may not read its fifo yet (ENXIO), then the next round tries again."""
        columns, lines = terminal.size()
        if not (self._ctl and columns) or time.monotonic() > self._resize_until:
            self._resize_until = 0.0
            return
        try:
            fifo = os.open(self._ctl, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENXIO:
                self._resize_until = 0.0
            return
        with contextlib.suppress(OSError):
            os.write(fifo, f"1 {lines} {columns}\n".encode())
        os.close(fifo)
        self._resize_until = 0.0

    def _output(self) -> None:
        try:
            packet = self._link.recv(_PACKET_OUT)
        except BlockingIOError:
            return
        except OSError:  # ECONNRESET: conmon closed with input of ours unread
            packet = b""
        if not packet:
            self._attached = False
        elif packet[0] in {2, 3}:
            self._write(packet[0] - 1, packet[1:])

    def _write(self, fd: int, data: bytes) -> None:
        if fd in self._broken:
            return
        try:
            while data:
                if not select.select([], [fd], [], self._patience)[1]:
                    self._stalled()
                    return
                with contextlib.suppress(BlockingIOError):
                    # Writable means that this much fits into a pipe (pipe(7), PIPE_BUF): more could block.
                    data = data[os.write(fd, data[: select.PIPE_BUF]) :]
        except OSError as error:
            self._output_failed(fd, error)

    def _stalled(self) -> None:
        """conmon waits for its slowest client, and the container for conmon: rather leave than stop both."""
        self.failure = CleatError(
            "left the container: nobody read its output here",
            why=f"for {self._patience:g} s",
            hint="cleat attach again",
        )
        self.end = End.DETACHED

    def _output_failed(self, fd: int, error: OSError) -> None:
        """Nobody reads it any more, or the disk is full: what the command would have got is a signal."""
        self._broken.add(fd)
        if error.errno not in {errno.EPIPE, errno.EIO}:
            self.failure = CleatError("cannot write the output", why=error.strerror or str(error))
        if not self._on_signal(signal.SIGPIPE):
            self.end = End.SIGNALLED
            self.signal = signal.SIGPIPE

    def _input(self) -> None:
        try:
            data = os.read(0, _PACKET_IN)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._read_stdin = False
            with contextlib.suppress(OSError):
                self._link.shutdown(socket.SHUT_WR)
            return
        self._pending, detach = self._keys.feed(data)
        if detach:
            self.end = End.DETACHED

    def _send(self) -> None:
        try:
            sent = self._link.send(self._pending[:_PACKET_IN], socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except OSError:  # nobody takes input any more; output may still come
            self._pending = b""
            self._read_stdin = False
            return
        self._pending = self._pending[sent:]

    def _take_answer(self) -> None:
        outcome = self._answer.take()
        if outcome is not None:
            self.code = outcome if isinstance(outcome, CleatError) else _code(outcome)
        if self._answer.away is None:
            self._away_until = 0.0

    def _wait_for_agent(self, reason: CleatError) -> None:
        """The command has ended and only an agent knows how: one has this long to come back."""
        now = time.monotonic()
        self._away_until = self._away_until or now + _AWAY_SEC
        if now >= self._away_until:
            self.code = reason


def _code(values: tuple[Any, ...]) -> int:
    return int(values[0]) & 0xFF
