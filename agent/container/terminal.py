# SPDX-License-Identifier: Apache-2.0
"""The caller's terminal joined to a container's: keys in, output out, size changes (conmon's attach socket and ctl).

Output is one packet per read with a leading byte for the stream, input goes raw; a line "1 HEIGHT WIDTH" on the control
fifo resizes (conmon's src/conn_sock.c, src/ctrl.c).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import termios
import tty
from contextlib import suppress
from pathlib import Path

_PACKET = 8193
_INPUT = 32768
_CELLS_MAX = 1000  # newer conmons ignore a resize beyond it


class Terminal:
    """Joins fds 0 and 1 to the container in `bundle` until close(). Raw mode lasts as long."""

    def __init__(self, bundle: Path) -> None:
        self._control = os.fspath(bundle / "ctl")
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        folder = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # By way of the folder's fd: sun_path holds 107 bytes.
            self._socket.connect(f"/proc/self/fd/{folder}/attach")
        except OSError:
            self._socket.close()
            raise
        finally:
            os.close(folder)
        self._socket.settimeout(0)
        self._before = termios.tcgetattr(0) if os.isatty(0) else None
        if self._before is not None:
            tty.setraw(0, termios.TCSADRAIN)
        self._loop.add_reader(self._socket, self._output)
        self._loop.add_reader(0, self._input)
        self._loop.add_signal_handler(signal.SIGWINCH, self.resize)
        self.resize()

    def _output(self) -> None:
        """conmon waits for whoever does not read, so all is read; what cannot be written is the caller's loss."""
        try:
            data = self._socket.recv(_PACKET)
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._socket)
            return
        view = memoryview(data)[1:]
        with suppress(OSError):
            while view:
                view = view[os.write(1, view) :]

    def _input(self) -> None:
        try:
            data = os.read(0, _INPUT)
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(0)
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            return
        with suppress(OSError):  # a full queue: keys are dropped as a terminal's own are
            self._socket.send(data)

    def resize(self) -> None:
        """Tell the size of the caller's terminal."""
        with suppress(OSError):
            columns, lines = (min(n, _CELLS_MAX) for n in os.get_terminal_size(0))
            fd = os.open(self._control, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(fd, f"1 {lines} {columns}\n".encode())
            finally:
                os.close(fd)

    def close(self) -> None:
        """Take what is still there, let go, and have the terminal as it was."""
        for fd in (self._socket.fileno(), 0):
            self._loop.remove_reader(fd)
        self._loop.remove_signal_handler(signal.SIGWINCH)
        with suppress(OSError):
            while data := self._socket.recv(_PACKET):
                os.write(1, data[1:])
        self._socket.close()
        if self._before is not None:
            with suppress(termios.error):  # the terminal itself may be gone
                termios.tcsetattr(0, termios.TCSADRAIN, self._before)
