# SPDX-License-Identifier: Apache-2.0
"""The socket of cleat@NAME.service's commands: a line in, a line out, and the end of a client that was cancelled."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path

import pytest

from agent.daemon.handle_socket import Client, HandleSocket
from agent.errors import InvalidState


async def ask(path: Path, line: str) -> str:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(line.encode())
    try:
        return (await reader.read()).decode()
    finally:
        writer.close()


async def well(client: Client, name: str) -> None:
    assert client.pid == os.getpid()
    assert name == "web"


async def badly(client: Client, name: str) -> None:
    raise InvalidState("is\nin no state for it", container=name, hint="wait")


async def wrongly(client: Client, name: str) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("well web\n", "0\n"),
        ("badly web\n", "199 web: is in no state for it (wait)\n"),
        ("wrongly web\n", "199 the agent met a fault of its own: journalctl -u cleat\n"),
        ("other web\n", "199 'other' is nothing that a handle can ask for\n"),
        ("x" * 4096, ""),
    ],
)
def test_answers(tmp_path: Path, line: str, answer: str, caplog: pytest.LogCaptureFixture) -> None:
    async def talk() -> str:
        listening = HandleSocket(tmp_path / "handles", {"well": well, "badly": badly, "wrongly": wrongly})
        listening.start()
        assert stat.S_IMODE((tmp_path / "handles").stat().st_mode) == 0o600
        try:
            return await ask(tmp_path / "handles", line)
        finally:
            listening.close()

    assert asyncio.run(talk()) == answer
    assert bool(caplog.records) == line.startswith("wrongly")


def test_a_client_that_goes_is_seen(tmp_path: Path) -> None:
    async def go() -> bool:
        gone = asyncio.get_running_loop().create_future()

        async def wait(client: Client, name: str) -> None:
            await client.gone.wait()
            gone.set_result(True)

        listening = HandleSocket(tmp_path / "handles", {"wait": wait})
        listening.start()
        _, writer = await asyncio.open_unix_connection(tmp_path / "handles")
        writer.write(b"wait web\n")
        await writer.drain()
        writer.close()
        async with asyncio.timeout(5):
            found = bool(await gone)
        listening.close()
        return found

    assert asyncio.run(go())


def test_a_client_that_waits_outlives_the_agent(tmp_path: Path) -> None:
    async def wait_on() -> bytes:
        waiting: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def wait(client: Client, name: str) -> None:
            waiting.set_result(os.dup(client.fd))
            raise asyncio.CancelledError

        first = HandleSocket(tmp_path / "handles", {"wait": wait})
        first.start()
        reader, writer = await asyncio.open_unix_connection(tmp_path / "handles")
        writer.write(b"wait web\n")
        kept = await waiting
        first.close()
        await HandleSocket(tmp_path / "handles", {"well": well}).resume([("well", "web", kept)])
        try:
            async with asyncio.timeout(5):
                return await reader.read()
        finally:
            writer.close()

    assert asyncio.run(wait_on()) == b"0\n"


def test_a_client_that_went_meanwhile_is_not_served(tmp_path: Path) -> None:
    async def go() -> None:
        ours, theirs = socket.socketpair()
        theirs.close()
        await HandleSocket(tmp_path / "handles", {"well": wrongly}).resume([("well", "web", ours.detach())])

    asyncio.run(go())


def test_an_agent_that_ends_leaves_nobody_to_answer(tmp_path: Path) -> None:
    async def end() -> None:
        for _ in range(2):
            listening = HandleSocket(tmp_path / "handles", {})
            listening.start()
            assert (tmp_path / "handles").is_socket()
            listening.close()
            assert (tmp_path / "handles").readlink() == Path("/dev/null")

    asyncio.run(end())
    assert os.listdir(tmp_path) == ["handles"]
