# SPDX-License-Identifier: Apache-2.0
"""Verbs about definitions: check them here, have the agent plan with them or read them again."""

from __future__ import annotations

import importlib
import json
import sys
from typing import TYPE_CHECKING, Any

from agent.cli import render
from agent.cli.arguments import JSON, Verb, option
from agent.cli.client import tell
from agent.errors import Unsupported

if TYPE_CHECKING:
    from argparse import Namespace


def plan(args: Namespace) -> int:
    return _show_plan(args, *tell("Plan", user=args.user))


def reload_agent(args: Namespace) -> int:
    return _show_plan(args, *tell("ReloadDefinitions", user=args.user))


def _show_plan(args: Namespace, text: str) -> int:
    """Actions on stdout, what is wrong with definitions on stderr; 1 if one of them is refused."""
    value = json.loads(text)
    if args.json:
        render.print_json(text)
    else:
        for diagnostic in value["diagnostics"]:
            print(render.printable(diagnostic_line(diagnostic)), file=sys.stderr)
        rows = [(each["action"], each["name"], each["reason"]) for each in value["actions"]]
        if rows:
            render.print_table(("ACTION", "NAME", "REASON"), rows)
        else:
            print("Nothing to do.")
    return int(any(not diagnostic["warning"] for diagnostic in value["diagnostics"]))


def diagnostic_line(diagnostic: dict[str, Any]) -> str:
    """FILE:LINE:COLUMN: KEY: REASON (HINT), as compilers write it; what is unknown is left out."""
    numbers = [str(diagnostic[part]) for part in ("line", "column") if diagnostic[part]]
    place = ":".join([diagnostic["file"], *numbers])
    kind = "warning" if diagnostic["warning"] else ""
    text = ": ".join(part for part in (place, kind, diagnostic["key"], diagnostic["reason"]) if part)
    return f"{text} ({diagnostic['hint']})" if diagnostic["hint"] else text


def schema(args: Namespace) -> int:
    module = importlib.import_module("agent.definition.schema")
    render.print_json(json.dumps(module.schema()))
    return 0


def run(args: Namespace) -> int:
    try:
        module = importlib.import_module("agent.run")
    except ModuleNotFoundError as error:
        raise Unsupported("this version cannot run a definition without the agent") from error
    code: int = module.main(args.file)
    return code


def check(args: Namespace) -> int:
    """All that is wrong in the files named, or in all definitions; 1 if one of them would be refused."""
    from agent.cli import checks

    found = checks.of_files(args.files, user=args.user) if args.files else checks.of_folders(user=args.user)
    if args.json:
        render.print_json(render.compact(found))
    else:
        for diagnostic in found:
            print(render.printable(diagnostic_line(diagnostic)))
        if not found and render.is_terminal():
            print("Nothing is wrong.")
    return int(any(not diagnostic["warning"] for diagnostic in found))


VERBS = (
    Verb(
        "check",
        "find what is wrong with definitions",
        check,
        (option("files", metavar="FILE", nargs="*", help="files to check (default: all definitions)"), JSON),
        "Read definitions as the agent would, and print all that is wrong as FILE:LINE:COLUMN: KEY: REASON. "
        "Needs no agent. The exit code is 1 if a definition would be refused.",
        "  cleat check\n  cleat check ./web.toml\n  cleat check --json | jq '.[].reason'",
    ),
    Verb(
        "plan",
        "show what reload-agent would do",
        plan,
        (JSON,),
        "Compare the definitions with what runs, and print what the agent would start, stop, restart or "
        "change. Nothing is done. The exit code is 1 if a definition is refused.",
        "  cleat plan",
    ),
    Verb(
        "reload-agent",
        "have the agent read the definitions again and act on them",
        reload_agent,
        (JSON,),
        "Read all definitions again and do what cleat plan shows. A container whose definition did not "
        "change is left alone; one whose definition is refused keeps running as it is. The exit code is 1 "
        "if a definition is refused.",
        "  cleat reload-agent",
    ),
    Verb(
        "schema",
        "print the JSON schema of definitions",
        schema,
        (),
        "Print the JSON schema of definitions, for editors that complete and check TOML by it.",
        "  cleat schema >cleat.schema.json",
    ),
    Verb(
        "run",
        "run one definition in the foreground, without the agent",
        run,
        (option("file", metavar="FILE", help="the definition"),),
        "Run a container under the unit of the caller until it ends; for services of your own and for "
        "trying things. The exit code is the container's.",
        "  cleat run ./job.toml\n  systemd-run --unit=job --service-type=notify cleat run /srv/job.toml",
    ),
)
