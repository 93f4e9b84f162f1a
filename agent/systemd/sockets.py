# SPDX-License-Identifier: Apache-2.0
"""Listening sockets and fifos out of [[socket]] tables (systemd.socket(5)), held by the agent and passed to containers.

They are blocking, as systemd passes them on (systemd.exec(5), NonBlocking=): the agent only polls them, and
the flag is shared with the container.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from agent.definition.addresses import Family
from agent.definition.values import InvalidValue
from agent.systemd import accept_filter, sockdiag, socket_options
from agent.systemd.holders import holder_of
from agent.systemd.passed_fds import PassedFd, take_listen_fds
from agent.systemd.socket_nodes import clear_path, make_fifo, open_up, owner_of, set_pipe_size
from agent.systemd.socket_options import OptionFailed
from agent.systemd.socket_wanted import Wanted, hint_of, wanted

if TYPE_CHECKING:
    from agent.definition.model import Socket

__all__ = [
    "PassedFd",
    "Wanted",
    "bind",
    "matches",
    "reconfigure",
    "remove_node",
    "take_listen_fds",
    "wanted",
]


Address = str | tuple[str | int, ...]


def bind(options: Socket, *, index: int = 0, container: str = "", file: str = "") -> int:
    """Make the socket or fifo of a table, listening, close-on-exec, blocking. The caller owns the fd.

    Raises DefinitionRejected with the key at fault, the kernel's reason and, for an address in use, its
    holder.
    """
    want = wanted(options, index=index, container=container, file=file)
    if want.is_fifo:
        return make_fifo(want)
    return _bind(want).detach()


def _bind(want: Wanted) -> socket.socket:
    owner = owner_of(want)
    sock, name = _new_socket(want)
    made = ""
    try:
        socket_options.apply(sock, socket_options.before_bind(want.options, sock.family, sock.type))
        if want.path:
            clear_path(want, owner)
            os.fchmod(sock.fileno(), 0o600)
        try:
            sock.bind(name)
        except OSError as e:
            raise want.rejected("", _why(want, e), hint_of(e.errno)) from e
        if want.path:
            made = want.path
            open_up(want, owner)
        _configure(sock, want)
    except BaseException as e:
        sock.close()
        if made:
            Path(made).unlink(missing_ok=True)
        if isinstance(e, OSError):
            key = e.key if isinstance(e, OptionFailed) else ""
            raise want.rejected(key, os.strerror(e.errno or 0), hint_of(e.errno)) from e
        raise
    return sock


def _configure(sock: socket.socket, want: Wanted) -> None:
    """All that may be set again on a socket that was kept."""
    socket_options.apply(sock, socket_options.after_bind(want.options, sock.family, sock.type))
    if sock.family in {socket.AF_INET, socket.AF_INET6}:
        try:
            accept_filter.attach(sock, want.networks)
        except InvalidValue as e:
            raise want.rejected("accept_from", e.reason, e.hint) from e
        except OSError as e:
            raise OptionFailed("accept_from", e) from e
    if want.listens:
        # After the buffers: TCP settles its window scale at listen(2) (tcp(7)).
        try:
            sock.listen(min(max(want.options.backlog, 0), 2**31 - 1))
        except OSError as e:
            raise want.rejected("", _why(want, e), hint_of(e.errno)) from e


def _new_socket(want: Wanted) -> tuple[socket.socket, Address]:
    """The unbound socket and what to bind it to."""
    name = _bind_name(want)
    kind = want.kind | socket.SOCK_CLOEXEC
    try:
        try:
            return socket.socket(want.family, kind), name
        except OSError as e:
            if not want.address.wildcard or e.errno != errno.EAFNOSUPPORT:
                raise
            # As systemd does for a bare port on a host without IPv6.
            return socket.socket(socket.AF_INET, kind), ("0.0.0.0", want.address.port)
    except OSError as e:
        raise want.rejected("", os.strerror(e.errno or 0), hint_of(e.errno)) from e


def _bind_name(want: Wanted) -> Address:
    address = want.address
    match address.family:
        case Family.IPV4:
            return (address.host, address.port)
        case Family.IPV6:
            return (address.host, address.port, 0, _scope_id(want))
        case Family.UNIX:
            return "\0" + address.path[1:] if address.is_abstract else address.path
        case Family.VSOCK:
            return (address.cid, address.port)


def _scope_id(want: Wanted) -> int:
    scope = want.address.scope
    if not scope or scope.isdigit():
        return int(scope or 0)
    try:
        return socket.if_nametoindex(scope)
    except OSError as e:
        raise want.rejected("", f"there is no network interface {scope}") from e


def _why(want: Wanted, e: OSError) -> str:
    reason = e.strerror or str(e)
    if e.errno != errno.EADDRINUSE:
        return reason
    holder = holder_of(_inodes_in_the_way(want))
    return f"{reason}: held by {holder}" if holder else reason


def _inodes_in_the_way(want: Wanted) -> list[int]:
    with suppress(OSError):
        if want.family == socket.AF_UNIX:
            name = want.address.path.encode()
            return [
                s.inode for s in sockdiag.unix_holders(b"\0" + name[1:] if want.address.is_abstract else name, None)
            ]
        if want.family in {socket.AF_INET, socket.AF_INET6}:
            protocol = socket.IPPROTO_TCP if want.kind == socket.SOCK_STREAM else socket.IPPROTO_UDP
            # A dual-stack socket stands in the way of IPv4 and the other way round.
            families = (want.family, socket.AF_INET6 if want.family == socket.AF_INET else socket.AF_INET)
            return [s.inode for f in families for s in sockdiag.inet_holders(f, protocol, want.address.port)]
    return []


def matches(fd: int, options: Socket) -> bool:
    """Whether a passed or stored fd is what the table asks for: kind, address, and for a path that it leads there.

    Options that can be changed are not compared: reconfigure() sets them. Raises DefinitionRejected for a
    bad table.
    """
    want = wanted(options)
    try:
        found = os.fstat(fd)
        if want.is_fifo:
            return stat.S_ISFIFO(found.st_mode) and os.path.samestat(found, os.lstat(want.path))
        if not stat.S_ISSOCK(found.st_mode):
            return False
        with socket.socket(fileno=fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)) as sock:
            return _is_wanted(sock, want)
    except OSError:
        return False


def _is_wanted(sock: socket.socket, want: Wanted) -> bool:
    if sock.type != want.kind:
        return False
    if want.listens and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return False
    name = sock.getsockname()
    if sock.family == socket.AF_INET and want.address.wildcard:
        return bool(name == ("0.0.0.0", want.address.port))
    if sock.family != want.family:
        return False
    if sock.family == socket.AF_UNIX:
        return _is_at(sock, want, name)
    if sock.family == socket.AF_INET6:
        return (name[0].partition("%")[0], name[1], name[3]) == (
            want.address.host,
            want.address.port,
            _scope_id(want),
        ) and _is_dual_as_wanted(sock, want)
    return bool(name == _bind_name(want))


def _is_at(sock: socket.socket, want: Wanted, name: str | bytes) -> bool:
    if want.address.is_abstract:
        return os.fsencode(name) == b"\0" + want.address.path[1:].encode()
    return sockdiag.is_bound_to(sock.fileno(), want.path)


def _is_dual_as_wanted(sock: socket.socket, want: Wanted) -> bool:
    if want.options.bind_ipv6_only == "default":
        return True
    only = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    return bool(only) == (want.options.bind_ipv6_only == "ipv6-only")


def reconfigure(fd: int, options: Socket, *, index: int = 0, container: str = "", file: str = "") -> None:
    """Set a table's options on an fd that matches() it. Raises DefinitionRejected with the key at fault.

    Numbers that were taken out of the table (buffers, mark, ip_tos ...) keep their last value until it is
    made anew.
    """
    want = wanted(options, index=index, container=container, file=file)
    os.set_blocking(fd, True)
    if want.is_fifo:
        set_pipe_size(fd, want)
        return
    with socket.socket(fileno=fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)) as sock:
        try:
            _configure(sock, want)
        except OptionFailed as e:
            raise want.rejected(e.key, os.strerror(e.errno or 0), hint_of(e.errno)) from e


def remove_node(fd: int, options: Socket) -> bool:
    """Remove the node of a socket or fifo that is given up, if the path still leads to it (remove_on_stop)."""
    path = wanted(options).path
    if not path or not matches(fd, options):
        return False
    with suppress(OSError):
        Path(path).unlink()
        return True
    return False
