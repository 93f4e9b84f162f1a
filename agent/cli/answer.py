# SPDX-License-Identifier: Apache-2.0
"""The answer to a call that lasts as long as a command or container does, over restarts of agent and bus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.cli.client import AGENT_BACK
from agent.errors import AgentUnreachable, CleatError, ConmonLost, InvalidArgument

if TYPE_CHECKING:
    from agent.cli.client import Bus

Outcome = tuple[Any, ...] | CleatError


class Answer:
    """Asks at once. With `again` it asks anew when the agent, or the bus, went away and is back.

    `away` is why there is nobody to answer now, None where there is.
    """

    def __init__(self, bus: Bus, member: str, signature: str, *values: Any, again: bool = False) -> None:
        self._bus = bus
        self._call = (member, signature, *values)
        self._again = again
        self._is_first = True
        self.away: AgentUnreachable | None = None
        self._ask()

    def fileno(self) -> int:
        return self._bus.fileno()

    def _ask(self) -> None:
        if self._again:
            # Before the call: who is not there when it arrives is seen coming.
            self._bus.watch_agent()
        self._serial = self._bus.send(*self._call)

    def take(self) -> Outcome | None:
        """The outcome if it is here by now."""
        try:
            for serial, outcome in self._bus.ready():
                if serial == AGENT_BACK and self.away is not None:
                    self._ask_anew()
                elif serial == self._serial and self._again and isinstance(outcome, AgentUnreachable):
                    self.away = outcome
                elif serial == self._serial:
                    return self._explained(outcome)
        except AgentUnreachable as error:
            return self._reconnected(error)
        return None

    def _reconnected(self, error: AgentUnreachable) -> Outcome | None:
        """The bus itself went away: its socket is systemd's, and whoever connects waits for the next one."""
        if not self._again:
            return error
        try:
            self._bus.reconnect()
            self._ask_anew()
        except CleatError as failure:
            return failure
        return None

    def _ask_anew(self) -> None:
        self.away = None
        self._is_first = False
        self._ask()

    def _explained(self, outcome: Outcome) -> Outcome:
        """A later agent that does not know what was asked for has come too late for its end."""
        if self._is_first or not isinstance(outcome, InvalidArgument):
            return outcome
        return ConmonLost("the exit code is not known", why="the container ended while the agent was away")
