# SPDX-License-Identifier: Apache-2.0
"""Connections are accepted, also after there was no room for one; a closed listener turns clients away."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from pathlib import Path

import pytest

from agent.daemon import listener
from agent.daemon.listener import Listener, bound_to


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readline())
    writer.close()


async def ask(client: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, b"hello\n")
    async with asyncio.timeout(10):
        return await loop.sock_recv(client, 64)


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.connect(os.fspath(path))
    except OSError:
        client.close()
        raise
    client.setblocking(False)  # noqa: FBT003 its only form
    return client


def test_clients_are_served_side_by_side(tmp_path: Path) -> None:
    async def check() -> list[bytes]:
        listening = Listener(bound_to(tmp_path / "s"), echo, limit=64)
        clients = [connected(tmp_path / "s") for _ in range(100)]
        answers = await asyncio.gather(*map(ask, clients))
        for client in clients:
            client.close()
        listening.close()
        with pytest.raises(ConnectionRefusedError):
            connected(tmp_path / "s")
        return answers

    assert asyncio.run(check()) == [b"hello\n"] * 100


def test_who_finds_no_room_is_served_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_PAUSE_SEC", 0.05)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def check() -> bytes:
        listening = Listener(bound_to(tmp_path / "s"), echo, limit=64)
        with connected(tmp_path / "s") as client:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
            asyncio.get_running_loop().call_later(0.1, resource.setrlimit, resource.RLIMIT_NOFILE, limits)
            try:
                return await ask(client)
            finally:
                listening.close()

    try:
        assert asyncio.run(check()) == b"hello\n"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_only_its_owner_can_connect(tmp_path: Path) -> None:
    with bound_to(tmp_path / "s"):
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    with pytest.raises(OSError, match="in use"):
        bound_to(tmp_path / "s")
