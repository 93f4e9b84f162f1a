# SPDX-License-Identifier: Apache-2.0
"""Where polkit may ask for a password: the caller's terminal, through pkttyagent(1), as systemctl(1) does it."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_REGISTERED_SEC = 5.0
_ENDED_SEC = 5.0


def may_ask() -> bool:
    """Root is never asked, and without a terminal there is nobody to ask."""
    return os.geteuid() != 0 and os.isatty(0) and os.isatty(2)


@contextlib.contextmanager
def password_prompt() -> Iterator[None]:
    """While inside, questions for this process are asked on its terminal, unless its desktop already does so."""
    reading, writing = os.pipe()
    command = ["pkttyagent", "--fallback", "--process", str(os.getpid()), "--notify-fd", str(writing)]
    try:
        agent = subprocess.Popen(command, pass_fds=(writing,))
    except OSError:  # not installed: polkit will refuse, and the refusal says what to do
        agent = None
    os.close(writing)
    try:
        select.select([reading], [], [], _REGISTERED_SEC if agent else 0)
        yield
    finally:
        os.close(reading)
        if agent:
            _end(agent)


def _end(agent: subprocess.Popen[bytes]) -> None:
    agent.terminate()
    try:
        agent.wait(_ENDED_SEC)
    except subprocess.TimeoutExpired:
        agent.kill()
        agent.wait()
