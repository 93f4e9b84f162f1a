# SPDX-License-Identifier: Apache-2.0
"""What systemd's own entries say of handles that were stopped while there was no agent."""

from __future__ import annotations

from agent.container.unattended import Entry, stops_in

STARTING = "7d4958e842da4a758f6c1cdc7b36dcc5"
SUCCEEDED = "7ad2d189f7e94e70a38c781354912448"
FAILED = "d9b373ed55a64feb8242e02dbe79a49c"
STOPPED = "9d1aaa27d60140bd96365438aad20286"


def told(*events: tuple[str, str]) -> dict[str, float]:
    """Each with its time, 1 s after the other."""
    entries = (Entry(str(n * 1_000_000), what, "cleat@web.service", job) for n, (what, job) in enumerate(events, 1))
    return stops_in(entries)


def test_a_stop_counts() -> None:
    assert told((SUCCEEDED, ""), (STOPPED, "stop")) == {"cleat@web.service": 2.0}


def test_a_client_that_lost_the_agent_was_not_stopped() -> None:
    assert not told((FAILED, ""), (STOPPED, "stop"))


def test_an_end_and_a_restart_are_no_stop() -> None:
    assert not told((SUCCEEDED, ""))
    assert not told((SUCCEEDED, ""), (STOPPED, "restart"))
    assert not told((SUCCEEDED, ""), (STARTING, "start"), (STOPPED, "stop"))


def test_one_that_is_started_again_is_not_stopped() -> None:
    assert not told((SUCCEEDED, ""), (STOPPED, "stop"), (STARTING, "start"))
