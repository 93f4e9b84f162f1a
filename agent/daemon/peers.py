# SPDX-License-Identifier: Apache-2.0
"""Clients of the bus that the agent does something for as long as they are there: NameOwnerChanged of each.

A client's unique name is never used again (D-Bus Specification, "Unique Connection Name"), so one that has gone has
gone for ever. When the bus itself goes away, so have all of them, and nobody is told: it was not their doing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from agent.errors import CleatError, InvalidState
from agent.systemd.bus import Bus, Signal

Gone = Callable[[], object]


def _rule(name: str) -> str:
    return f"type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='{name}',arg2=''"


class Peers:
    """Who is watched, and what to call when it leaves."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._gone: dict[str, Gone] = {}
        bus.on_signal("NameOwnerChanged", self._owner_changed)

    async def watch(self, name: str, gone: Gone) -> None:
        """Call `gone`, one per client, when it leaves the bus. Raises InvalidState when it has left already."""
        known = name in self._gone
        self._gone[name] = gone
        if known:
            return
        try:
            await self._bus.add_match(_rule(name))
            await self._bus.peer_pid(name)
        except CleatError as e:
            await self.unwatch(name)
            raise InvalidState("the caller has left the bus") from e

    def watches(self, name: str) -> bool:
        return name in self._gone

    async def unwatch(self, name: str) -> None:
        """Nothing happens for a client that is not watched."""
        if self._gone.pop(name, None) is not None:
            with suppress(CleatError):
                await self._bus.remove_match(_rule(name))

    def _owner_changed(self, signal: Signal) -> None:
        name, _, owner = signal.body
        if owner or signal.sender != "org.freedesktop.DBus":
            return
        gone = self._gone.get(name)
        if gone is not None:
            gone()

    async def forget_all(self) -> None:
        """The connection to the bus is a new one, with new names for everybody."""
        for name in tuple(self._gone):
            await self.unwatch(name)
