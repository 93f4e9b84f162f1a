# SPDX-License-Identifier: Apache-2.0
"""Exported D-Bus objects as tables: one row per method and property gives dispatch, introspection and access.

Method calls are dispatched on the message itself, so a thousand containers cost no exported object each.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import Any

import msgspec

PROPERTIES = "org.freedesktop.DBus.Properties"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PEER = "org.freedesktop.DBus.Peer"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"


class Access(StrEnum):
    """Who may call: everybody (what systemctl shows everybody), or who polkit lets do the action."""

    READ = ""
    INSPECT = "org.cleat.Agent1.inspect"
    MANAGE = "org.cleat.Agent1.manage-containers"
    EXEC = "org.cleat.Agent1.exec"
    RELOAD = "org.cleat.Agent1.reload"


class Method(msgspec.Struct, frozen=True):
    """`inputs` and `outputs` are (name, signature) pairs; `call` takes the caller and the arguments."""

    name: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    access: Access
    help: str
    call: Callable[..., Awaitable[Any]]

    @property
    def signature(self) -> str:
        return "".join(signature for _, signature in self.inputs)

    @property
    def reply_signature(self) -> str:
        return "".join(signature for _, signature in self.outputs)


class Property(msgspec.Struct, frozen=True):
    """`get` takes the object's status; a property that does not emit its change never changes."""

    name: str
    signature: str
    help: str
    get: Callable[[Any], Any]
    emits_change: bool = True


_SPECIAL = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\n": "&#10;", "\t": "&#9;"})


def quoteattr(text: str) -> str:
    """An XML attribute's value, quoted; xml.sax.saxutils would load urllib, and with it http, ssl and email."""
    return f'"{text.translate(_SPECIAL)}"'


def _documentation(text: str, indent: str) -> str:
    return f'{indent}<annotation name="org.gtk.GDBus.DocString" value={quoteattr(text)}/>\n'


def _method_xml(method: Method) -> str:
    arguments = [
        f'      <arg name={quoteattr(name)} type={quoteattr(signature)} direction="{direction}"/>\n'
        for direction, pairs in (("in", method.inputs), ("out", method.outputs))
        for name, signature in pairs
    ]
    body = _documentation(method.help, "      ") + "".join(arguments)
    return f"    <method name={quoteattr(method.name)}>\n{body}    </method>\n"


def _property_xml(prop: Property) -> str:
    change = "true" if prop.emits_change else "const"
    return (
        f'    <property name={quoteattr(prop.name)} type={quoteattr(prop.signature)} access="read">\n'
        + _documentation(prop.help, "      ")
        + f'      <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="{change}"/>\n'
        + "    </property>\n"
    )


def interface_xml(
    name: str,
    methods: Sequence[Method],
    properties: Sequence[Property] = (),
) -> str:
    """One <interface> element."""
    body = "".join(map(_method_xml, methods)) + "".join(map(_property_xml, properties))
    return f'  <interface name="{name}">\n{body}  </interface>\n'


_STANDARD = """\
  <interface name="org.freedesktop.DBus.Peer"><method name="Ping"/><method name="GetMachineId">
    <arg name="machine_uuid" type="s" direction="out"/></method></interface>
  <interface name="org.freedesktop.DBus.Introspectable"><method name="Introspect">
    <arg name="xml_data" type="s" direction="out"/></method></interface>
  <interface name="org.freedesktop.DBus.Properties">
    <method name="Get"><arg name="interface" type="s" direction="in"/><arg name="property" type="s" direction="in"/>
      <arg name="value" type="v" direction="out"/></method>
    <method name="GetAll"><arg name="interface" type="s" direction="in"/>
      <arg name="properties" type="a{sv}" direction="out"/></method>
    <method name="Set"><arg name="interface" type="s" direction="in"/><arg name="property" type="s" direction="in"/>
      <arg name="value" type="v" direction="in"/></method>
    <signal name="PropertiesChanged"><arg name="interface" type="s"/>
      <arg name="changed" type="a{sv}"/><arg name="invalidated" type="as"/></signal>
  </interface>
"""

_MANAGER = """\
  <interface name="org.freedesktop.DBus.ObjectManager">
    <method name="GetManagedObjects"><arg name="objects" type="a{oa{sa{sv}}}" direction="out"/></method>
    <signal name="InterfacesAdded"><arg name="object" type="o"/><arg name="interfaces" type="a{sa{sv}}"/></signal>
    <signal name="InterfacesRemoved"><arg name="object" type="o"/><arg name="interfaces" type="as"/></signal>
  </interface>
"""

_DOCTYPE = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)


def node_xml(interfaces: Sequence[str] = (), children: Sequence[str] = (), *, is_manager: bool = False) -> str:
    """The answer to Introspect of one object."""
    body = (_STANDARD if interfaces else "") + (_MANAGER if is_manager else "") + "".join(interfaces)
    body += "".join(f"  <node name={quoteattr(child)}/>\n" for child in children)
    return f"{_DOCTYPE}<node>\n{body}</node>\n"
