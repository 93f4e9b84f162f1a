# SPDX-License-Identifier: Apache-2.0
"""A service to test with: it answers on the sockets that it was given and does what it is told.

    payload.py FOLDER     commands come in FOLDER/control, a unix stream socket; one line of JSON answers each line

Streams are answered with one line, the text of the first one and who said so, datagrams are appended to
FOLDER/datagrams, a fifo's bytes too. Nothing is notified on its own but what $AT_START says.

    notify TEXT        to the notify socket, with \\n between assignments
    child TEXT         the same from a short-lived child that waits for a barrier
    barrier            wait until all before it was handled
    store NAME TEXT    keep a file with this content (FDSTORE=1)
    pipe NAME          keep the read end of a pipe; its other end stays open here until `hangup`
    hangup             close those ends
    stored             names and contents of what was kept
    fds                all open files by number, and the LISTEN_ variables
    nonblocking        what an event loop does to its sockets
    exit CODE
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import stat
import sys
from pathlib import Path
from typing import Any

FIRST = 3


class Payload:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.poll = select.epoll()
        count = int(os.environ.get("LISTEN_FDS", "0")) if os.environ.get("LISTEN_PID") == str(os.getpid()) else 0
        names = os.environ.get("LISTEN_FDNAMES", "").split(":")
        self.at_start = {fd: self.describe(fd) for fd in self.open_fds()}
        self.given = list(zip(names, range(FIRST, FIRST + count), strict=count > 0))
        self.blocking = [os.get_blocking(fd) for _, fd in self.given]
        self.sockets: dict[int, socket.socket] = {}
        self.pipes: list[int] = []
        for _, fd in self.given:
            self.watch(fd)
        self.control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        (folder / "control.new").unlink(missing_ok=True)
        self.control.bind(str(folder / "control.new"))
        self.control.listen()
        (folder / "control.new").rename(folder / "control")
        self.poll.register(self.control, select.EPOLLIN)

    @staticmethod
    def open_fds() -> list[int]:
        return [int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]

    @staticmethod
    def describe(fd: int) -> str:
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            return "gone"

    def watch(self, fd: int) -> None:
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):
            sock = socket.socket(fileno=fd)
            listens = sock.type == socket.SOCK_DGRAM or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if not listens:
                sock.detach()
                return
            self.sockets[fd] = sock
            self.poll.register(fd, select.EPOLLIN)
        elif stat.S_ISFIFO(mode) and os.readlink(f"/proc/self/fd/{fd}").startswith("/"):
            self.poll.register(fd, select.EPOLLIN)

    def run(self) -> None:
        """Until SIGTERM, which is looked at between requests only: none is left half done."""
        ours, theirs = socket.socketpair()
        theirs.settimeout(0)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(theirs.fileno())
        self.poll.register(ours, select.EPOLLIN)
        while True:
            for fd, _ in self.poll.poll():
                if fd == ours.fileno():
                    return
                if fd == self.control.fileno():
                    self.serve_control()
                elif fd in self.sockets:
                    self.serve(self.sockets[fd])
                else:
                    self.append(os.read(fd, 65536))

    def append(self, data: bytes) -> None:
        with (self.folder / "datagrams").open("ab") as file:
            file.write(data if data.endswith(b"\n") else data + b"\n")

    def serve(self, sock: socket.socket) -> None:
        if sock.type == socket.SOCK_DGRAM:
            self.append(sock.recv(65536))
            return
        connection, _ = sock.accept()
        with connection:
            connection.settimeout(None)
            text = connection.recv(4096).decode().strip()
            connection.sendall(f"{text} {os.environ['HOSTNAME']}\n".encode())

    def serve_control(self) -> None:
        connection, _ = self.control.accept()
        with connection, connection.makefile("rw") as stream:
            for line in stream:
                verb, _, rest = line.rstrip("\n").partition(" ")
                stream.write(json.dumps(getattr(self, f"do_{verb}")(rest)) + "\n")
                stream.flush()

    def do_notify(self, text: str, fds: tuple[int, ...] = ()) -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(os.environ["NOTIFY_SOCKET"])
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            sock.sendmsg([text.replace("\\n", "\n").encode()], ancillary)
        return "sent"

    def do_barrier(self, _: str = "") -> str:
        ours, theirs = os.pipe()
        self.do_notify("BARRIER=1", (theirs,))
        os.close(theirs)
        poll = select.poll()
        poll.register(ours, 0)
        handled = bool(poll.poll(10_000))
        os.close(ours)
        return "handled" if handled else "not handled within 10 s"

    def do_child(self, text: str) -> str:
        pid = os.fork()
        if not pid:
            self.do_notify(text)
            os._exit(0 if self.do_barrier() == "handled" else 1)
        return str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    def do_store(self, rest: str) -> str:
        name, _, text = rest.partition(" ")
        fd = os.memfd_create(name)
        os.write(fd, text.encode())
        self.do_notify(f"FDSTORE=1\nFDNAME={name}", (fd,))
        os.close(fd)
        return self.do_barrier()

    def do_pipe(self, name: str) -> str:
        ours, theirs = os.pipe()
        self.do_notify(f"FDSTORE=1\nFDNAME={name}", (ours,))
        os.close(ours)
        self.pipes.append(theirs)
        return self.do_barrier()

    def do_hangup(self, _: str) -> str:
        for fd in self.pipes:
            os.close(fd)
        self.pipes = []
        return "closed"

    def do_stored(self, _: str) -> list[list[str]]:
        kept = [(name, fd) for name, fd in self.given if fd not in self.sockets]
        return [[name, os.pread(fd, 4096, 0).decode()] for name, fd in kept if stat.S_ISREG(os.fstat(fd).st_mode)]

    def do_fds(self, _: str) -> dict[str, Any]:
        variables = {name: value for name, value in os.environ.items() if name.startswith(("LISTEN_", "NOTIFY_"))}
        return {"fds": self.at_start, "environment": variables, "blocking": self.blocking, "pid": os.getpid()}

    def do_nonblocking(self, _: str) -> str:
        for fd in self.sockets:
            os.set_blocking(fd, False)
        return "done"

    def do_exit(self, code: str) -> None:
        os._exit(int(code))


def main() -> None:
    payload = Payload(Path(sys.argv[1]))
    for text in os.environ.get("AT_START", "").split(";"):
        if text:
            payload.do_notify(text)
    print("payload started", flush=True)
    payload.run()


if __name__ == "__main__":
    main()
