# SPDX-License-Identifier: Apache-2.0
"""The D-Bus manual says what the tables say, the policies know the same names, the introspection is XML."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from agent.daemon import bus_object
from agent.daemon.bus_object import Access, Method, Property
from agent.daemon.interface import (
    CONTAINER,
    MANAGER,
    MANAGER_PROPERTIES,
    PROPERTIES,
    container_methods,
    manager_methods,
)
from agent.errors import CleatError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/man/org.cleat.Agent1.5.md"


class Anything:
    """Stands for the operations, which the tables only point to."""

    def __getattr__(self, name: str) -> Any:
        return name


METHODS = manager_methods(Anything())  # type: ignore[arg-type]
OF_CONTAINER = container_methods(Anything())  # type: ignore[arg-type]


def _arguments(pairs: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{signature} *{name}*" for name, signature in pairs)


def method_line(method: Method) -> str:
    answer = f" → {_arguments(method.outputs)}" if method.outputs else ""
    return f"**{method.name}**({_arguments(method.inputs)}){answer}"


def property_line(prop: Property) -> str:
    return f"**{prop.name}** ({prop.signature})"


def errors(kind: type[CleatError] = CleatError) -> list[type[CleatError]]:
    return [kind, *(found for sub in kind.__subclasses__() for found in errors(sub))]


def section(title: str) -> str:
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"^# {title}$(.*?)(?=^# |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def entries(text: str) -> dict[str, str]:
    """Terms and their first line."""
    return dict(re.findall(r"^(\*\*\w+\*\*.*)\n:   (.*)$", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("title", "methods", "properties"),
    [("THE MANAGER OBJECT", METHODS, MANAGER_PROPERTIES), ("CONTAINER OBJECTS", OF_CONTAINER, PROPERTIES)],
)
def test_the_manual_has_every_member(title: str, methods: tuple[Method, ...], properties: tuple[Property, ...]) -> None:
    wanted = {method_line(m): m.help for m in methods} | {property_line(p): p.help for p in properties}
    assert entries(section(title)) == wanted


def test_the_manual_has_every_error() -> None:
    lines = re.findall(r"^(\*.*)\n:   ", section("ERRORS"), re.MULTILINE)
    named = {name for line in lines for name in re.findall(r"\*(\w+)\*", line)}
    assert named >= {kind.dbus_name().rpartition(".")[2] for kind in errors() if kind.__module__ == "agent.errors"}


def test_the_manual_and_the_policy_have_every_action() -> None:
    policy = ET.parse(ROOT / "config/polkit/org.cleat.Agent1.policy")
    actions = {access.value for access in Access if access is not Access.READ}
    assert {action.get("id") for action in policy.iter("action")} == actions
    text = section("ACCESS")
    for action in actions:
        methods = [m.name for m in METHODS if m.access.value == action]
        found = re.search(rf"^\*{re.escape(action)}\*\n:   (.*?)(?=\n\n)", text, re.MULTILINE | re.DOTALL)
        assert found is not None, action
        assert set(re.findall(r"\*\*(\w+)\*\*", found[1])) == set(methods), action


def test_everybody_may_call_what_polkit_shall_decide_on() -> None:
    """The bus passes calls on; the agent asks polkit. Only properties cannot be set."""
    policy = ET.parse(ROOT / "config/dbus/org.cleat.Agent1.conf")
    default = next(p for p in policy.iter("policy") if p.get("context") == "default")
    assert [d.attrib for d in default.iter("deny")] == [{"send_destination": "org.cleat.Agent1"}]
    allowed = {a.get("send_interface") for a in default.iter("allow") if a.get("send_interface")}
    assert allowed >= {MANAGER, CONTAINER, bus_object.OBJECT_MANAGER, bus_object.INTROSPECTABLE}
    members = {a.get("send_member") for a in default.iter("allow") if a.get("send_interface") == bus_object.PROPERTIES}
    assert members == {"Get", "GetAll"}


def test_introspection_is_xml_with_every_member() -> None:
    manager = bus_object.interface_xml(MANAGER, METHODS, MANAGER_PROPERTIES)
    root = ET.fromstring(bus_object.node_xml([manager], ["container"], is_manager=True))
    interface = next(i for i in root.iter("interface") if i.get("name") == MANAGER)
    assert [m.get("name") for m in interface.iter("method")] == [m.name for m in METHODS]
    for method, element in zip(METHODS, interface.iter("method"), strict=True):
        arguments = [(a.get("direction"), a.get("name"), a.get("type")) for a in element.iter("arg")]
        assert arguments == [("in", *pair) for pair in method.inputs] + [("out", *pair) for pair in method.outputs]
    assert [node.get("name") for node in root.iter("node")][1:] == ["container"]


def test_what_only_looks_is_free_and_nothing_else() -> None:
    free = {m.name for m in METHODS if m.access is Access.READ}
    assert free == {"GetStatus", "Wait", "Info", "Stats", "Images", "Subscribe", "Unsubscribe"}
