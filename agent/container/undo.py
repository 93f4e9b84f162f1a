# SPDX-License-Identifier: Apache-2.0
"""Undoing what was begun, completely, whatever else happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from agent.background import completed


@asynccontextmanager
async def undone_on_failure() -> AsyncIterator[AsyncExitStack]:
    """Steps to take if the block fails: all of them, also when a stop comes meanwhile."""
    undo = AsyncExitStack()
    try:
        yield undo
    except BaseException:
        await completed(asyncio.create_task(undo.aclose()))
        raise
