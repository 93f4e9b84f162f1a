# SPDX-License-Identifier: Apache-2.0
"""Undoing what was begun, completely, whatever else happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress


@asynccontextmanager
async def undone_on_failure() -> AsyncIterator[AsyncExitStack]:
    """Steps to take if the block fails: all of them, also when a stop comes meanwhile."""
    undo = AsyncExitStack()
    try:
        yield undo
    except BaseException:
        unwinding = asyncio.create_task(undo.aclose())
        while not unwinding.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(unwinding)
        unwinding.result()
        raise
