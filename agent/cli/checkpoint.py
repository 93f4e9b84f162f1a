# SPDX-License-Identifier: Apache-2.0
"""Verbs that write a running container to disk and bring it back (criu(8) does the work)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.arguments import NAME, Verb, option
from agent.cli.client import tell

if TYPE_CHECKING:
    from argparse import Namespace


def checkpoint(args: Namespace) -> int:
    options = {
        "leave_running": args.leave_running,
        "tcp_established": args.tcp_established,
        "keep": args.keep,
        "export": _absolute(args.export),
    }
    tell("Checkpoint", "ss", args.name, json.dumps(options), user=args.user)
    return 0


def restore(args: Namespace) -> int:
    options = {"tcp_established": args.tcp_established, "keep": args.keep, "import": _absolute(args.archive)}
    tell("Restore", "ss", args.name, json.dumps(options), user=args.user)
    return 0


def _absolute(path: str) -> str:
    """The agent's working directory is not the caller's."""
    return str(Path(path).absolute()) if path else ""


_TCP = option("--tcp-established", action="store_true", help="with its open TCP connections")
_KEEP = option("-k", "--keep", action="store_true", help="keep criu's files and logs afterwards")

VERBS = (
    Verb(
        "checkpoint",
        "write a running container to disk and end it",
        checkpoint,
        (
            NAME,
            option("-R", "--leave-running", action="store_true", help="let it go on running"),
            option("-e", "--export", metavar="FILE", default="", help="also write an archive for another host"),
            _TCP,
            _KEEP,
        ),
        "",
        "  cleat checkpoint web\n  cleat checkpoint -R -e /var/tmp/web.tar web",
    ),
    Verb(
        "restore",
        "go on with a container where its checkpoint was made",
        restore,
        (
            NAME,
            option("-i", "--import", dest="archive", metavar="FILE", default="", help="from this archive"),
            _TCP,
            _KEEP,
        ),
        "",
        "  cleat restore web\n  cleat restore -i /var/tmp/web.tar web",
    ),
)
