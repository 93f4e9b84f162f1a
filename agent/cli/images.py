# SPDX-License-Identifier: Apache-2.0
"""Verbs about images: fetch them, list them, remove what nothing needs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from agent.cli import render
from agent.cli.arguments import JSON, Verb, option
from agent.cli.client import ask, tell
from agent.cli.lifecycle import ALL, call_each
from agent.cli.names import NAMES

if TYPE_CHECKING:
    from argparse import Namespace


def pull(args: Namespace) -> int:
    return call_each(args, "Pull")


def images(args: Namespace) -> int:
    (text,) = ask("Images", user=args.user)
    if args.json:
        render.print_json(text)
    else:
        render.print_records(json.loads(text))
    return 0


def prune(args: Namespace) -> int:
    (text,) = tell("Prune", "b", args.dry_run, user=args.user)
    if args.json:
        render.print_json(text)
    else:
        render.print_tree(json.loads(text))
    return 0


VERBS = (
    Verb(
        "pull",
        "fetch the images of containers",
        pull,
        (NAMES, ALL),
        "Fetch the images that the definitions name, even if they are here already. Nothing is restarted; "
        "the next start uses them.",
        "  cleat pull web && cleat restart web\n  cleat pull --all",
    ),
    Verb("images", "list the images that are here", images, (JSON,), "", "  cleat images"),
    Verb(
        "prune",
        "remove images and leftovers that no container needs",
        prune,
        (option("--dry-run", action="store_true", help="only say what would be removed"), JSON),
        "",
        "  cleat prune --dry-run\n  cleat prune",
    ),
)
