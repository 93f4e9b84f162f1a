# SPDX-License-Identifier: Apache-2.0
"""Every key is declared once; help, JSON schema, manual pages and samples must say the same."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.definition import help as key_help
from agent.definition.agent_config import AgentConfig, Metrics, ServiceDefaults
from agent.definition.keys import DEFINITION
from agent.definition.load import parse_text
from agent.definition.model import Container, Resources, Service, Table
from agent.definition.parse import struct_keys
from agent.definition.schema import schema, table_schema
from agent.definition.specifiers import HELP as SPECIFIERS

ROOT = Path(__file__).parents[2]
CONTAINER_PAGE = (ROOT / "docs/man/cleat-container.toml.5.md").read_text()
CONFIG_PAGE = (ROOT / "docs/man/cleat.toml.5.md").read_text()


def structs() -> dict[str, type[Table]]:
    """Each table of a definition with its struct; "" is the top."""
    found: dict[str, type[Table]] = {"": Container}
    for name, hint in typing.get_type_hints(Container).items():
        for kind in (hint, *typing.get_args(hint)):
            if isinstance(kind, type) and issubclass(kind, Table):
                found[name] = kind
    return found


def definition_keys() -> list[str]:
    return [
        f"{table}.{key}".removeprefix(".")
        for table, kind in structs().items()
        for key in struct_keys(kind)
        if table or key not in DEFINITION.tables
    ]


def config_keys() -> list[str]:
    tables = {"defaults", "metrics"}
    found = [key for key in struct_keys(AgentConfig) if key not in tables]
    found += [f"defaults.service.{key}" for key in struct_keys(ServiceDefaults)]
    return found + [f"metrics.{key}" for key in struct_keys(Metrics)]


def test_every_key_has_a_line_of_help() -> None:
    assert set(key_help.DEFINITION) == set(definition_keys())
    assert set(key_help.CONFIG) == set(config_keys())
    assert set(key_help.TABLES) == set(structs()) - {""}


@pytest.mark.parametrize("line", [*key_help.DEFINITION.values(), *key_help.CONFIG.values(), *key_help.TABLES.values()])
def test_help_is_one_line(line: str) -> None:
    assert line == line.strip()
    assert not line.endswith(".")
    assert "\n" not in line
    assert len(line) < 110


# Manual pages


def documented(page: str, table: str) -> dict[str, str]:
    """Key to default, as written in the section of a table."""
    title = table or "TOP-LEVEL KEYS"
    sections = re.split(r"^# (.+)$", page, flags=re.MULTILINE)
    text = {name.strip("[]"): body for name, body in zip(sections[1::2], sections[2::2], strict=True)}[title]
    entries = re.findall(r"^\*\*([a-z0-9_]+)\*\*(?: = (.+))?$", text, flags=re.MULTILINE)
    return {key: re.sub(r"\\(.)", r"\1", default) for key, default in entries}


def defaults(kind: type[Table], prefix: str) -> Iterator[tuple[str, Any]]:
    """What the schema says, which is written as in TOML."""
    for key, each in table_schema(kind, prefix, {})["properties"].items():
        yield key, each.get("default")


@pytest.mark.parametrize(("table", "kind"), structs().items())
def test_container_page(table: str, kind: type[Table]) -> None:
    found = documented(CONTAINER_PAGE, table)
    keys = [key for key in struct_keys(kind) if table or key not in DEFINITION.tables]
    assert list(found) == keys
    if kind is Resources:
        return
    for key, default in defaults(kind, table):
        if key in found and default is not None:
            assert found[key] == _toml(default), key


def _toml(value: Any) -> str:
    return json.dumps(value)


def test_config_page() -> None:
    found = documented(CONFIG_PAGE, "") | documented(CONFIG_PAGE, "runtimes")
    assert set(found) == set(struct_keys(AgentConfig)) - {"defaults", "metrics"}
    service = documented(CONFIG_PAGE, "defaults.service")
    assert list(service) == list(struct_keys(ServiceDefaults))
    expected = dict(defaults(Service, "service."))
    assert {key: _toml(expected[key]) for key in service} == service
    assert list(documented(CONFIG_PAGE, "metrics")) == list(struct_keys(Metrics))
    for key, default in defaults(AgentConfig, ""):
        if key in found and default is not None:
            assert found[key] == _toml(default), key


def test_every_specifier_is_documented() -> None:
    section = CONTAINER_PAGE.partition("# SPECIFIERS")[2].partition("\n# ")[0]
    assert re.findall(r"^\*\*%(.)\*\*$", section, flags=re.MULTILINE) == list(SPECIFIERS)


@pytest.mark.parametrize("page", [CONTAINER_PAGE, CONFIG_PAGE])
def test_examples_in_pages_are_toml(page: str) -> None:
    """Indented blocks below EXAMPLES."""
    import tomli

    text = re.split(r"^# EXAMPLES?$", page, flags=re.MULTILINE)[1].partition("\n# ")[0]
    blocks = re.split(r"^\S.*$", text, flags=re.MULTILINE)
    for block in blocks:
        tomli.loads(re.sub(r"^ {4}", "", block, flags=re.MULTILINE))
    assert any(block.strip() for block in blocks)


# JSON schema


def test_schema_has_every_key_with_help() -> None:
    found = schema()
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(json.dumps(found)) == found
    for path in definition_keys():
        table, _, key = path.rpartition(".")
        place = found["properties"][table] if table else found
        place = place.get("items", place)
        assert place["additionalProperties"] is False
        entry = place["properties"][key]
        assert entry["description"], path
        assert {"type", "enum", "anyOf"} & set(entry), path


def test_schema_defaults_are_what_a_definition_may_say() -> None:
    """All defaults of the schema, written out, give the definition that says nothing."""
    found = schema()["properties"]
    raw = {
        table: {key: e["default"] for key, e in found[table]["properties"].items() if e.get("default")}
        for table in structs()
        if table and "properties" in found[table]
    }
    lines = ['image = "x"']
    for table, entries in raw.items():
        lines += [f"[{table}]"] + [f"{key} = {_toml(value)}" for key, value in entries.items() if table != "health"]
    lines.remove("[health]")
    definition, diagnostics = parse_text("\n".join(lines), "web", "/web.toml")
    assert definition is not None, [str(d) for d in diagnostics]
    assert definition.container == Container(name="web", source="/web.toml", image="x")


# Samples


@pytest.mark.parametrize("path", sorted((ROOT / "config/samples").glob("*.toml")), ids=lambda path: path.name)
def test_sample(path: Path) -> None:
    text = path.read_text()
    name = path.stem + "example" if path.stem.endswith("@") else path.stem
    definition, diagnostics = parse_text(text, name, str(path))
    assert diagnostics == ()
    assert definition is not None
    assert definition.container.rootfs == "/srv/cleat-samples/busybox"
    # What a sample shows commented out is right, too.
    lines = [re.sub(r"^#(?=\[|[a-z_]+ = )", "", line) for line in text.splitlines()]
    definition, diagnostics = parse_text("\n".join(lines), name, str(path))
    assert definition is not None, [str(d) for d in diagnostics]
