# SPDX-License-Identifier: Apache-2.0
"""Greets whoever connects: the sockets come from outside, readiness and status go there. See greeter.toml."""

from __future__ import annotations

import selectors
import signal
import socket

from systemd import daemon


def main() -> None:
    stop_here, stop = socket.socketpair()
    stop.settimeout(0)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(stop.fileno())

    selector = selectors.DefaultSelector()
    selector.register(stop_here, selectors.EVENT_READ)
    for fd, name in daemon.listen_fds_with_names().items():
        selector.register(socket.socket(fileno=fd), selectors.EVENT_READ, name)

    greeted = 0
    daemon.notify("READY=1\nSTATUS=Nobody came yet")
    while True:
        for key, _ in selector.select():
            if key.fileobj is stop_here:
                daemon.notify(f"STOPPING=1\nSTATUS=Greeted {greeted}")
                return
            listener = key.fileobj
            assert isinstance(listener, socket.socket)
            connection, _ = listener.accept()
            with connection:
                connection.sendall(f"Welcome at the {key.data}\n".encode())
            greeted += 1
            daemon.notify(f"STATUS=Greeted {greeted}\nWATCHDOG=1")


if __name__ == "__main__":
    main()
