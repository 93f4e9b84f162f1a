# SPDX-License-Identifier: Apache-2.0
"""The JSON schema of a definition (draft 2020-12), for editors: every key with its type, default and help.

It says less than the loader, which also knows what must hold between keys.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from agent.definition import help as key_help
from agent.definition import resources, values
from agent.definition.kinds import KINDS, MAPS
from agent.definition.model import Container, Resources, Table
from agent.definition.parse import struct_default, struct_keys

Schema = dict[str, Any]
ID = "urn:cleat:container"


def schema() -> Schema:
    """The schema of NAME.toml."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": ID,
        "title": "cleat-container.toml(5)",
        "description": "A container for cleat",
        **table_schema(Container, "", key_help.DEFINITION),
        "oneOf": [{"required": [key]} for key in ("image", "rootfs", "bundle")],
    }


def table_schema(kind: type[Table], prefix: str, lines: Mapping[str, str]) -> Schema:
    """A table as an object without further keys. `lines` holds the help."""
    keys = struct_keys(kind)
    if kind is Resources:
        properties = {key: _resource(key) for key in keys}
    else:
        hints = typing.get_type_hints(kind, include_extras=True)
        properties = {key: _key(kind, key, hints[key], prefix, lines) for key in keys}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _key(kind: type[Table], key: str, hint: Any, prefix: str, lines: Mapping[str, str]) -> Schema:
    path = prefix + key
    found = _type(hint, f"{path}.", lines)
    line = lines.get(path) or key_help.TABLES.get(path, "")
    default = _default(struct_default(kind, key), hint)
    return found | ({"description": line} if line else {}) | ({} if default is None else {"default": default})


def _type(hint: Any, prefix: str, lines: Mapping[str, str]) -> Schema:
    kind, low, high = "", None, None
    if typing.get_origin(hint) is Annotated:
        hint, *metadata = typing.get_args(hint)
        for meta in metadata:
            kind = (meta.extra or {}).get("kind", kind)
            low, high = meta.ge, meta.le
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in {types.UnionType, typing.Union}:
        return _type(next(a for a in arguments if a is not type(None)), prefix, lines)
    if origin is tuple:
        return {"type": "array", "items": _type(arguments[0], prefix, lines)}
    if origin is dict:
        return dict(MAPS[kind].schema) if kind else _free(arguments[1], prefix, lines)
    if issubclass(hint, Table):
        return table_schema(hint, prefix, lines)
    if issubclass(hint, StrEnum):
        return {"enum": [str(member) for member in hint]}
    name = kind or {bool: "boolean", int: "integer", str: "line", float: "time_span"}[hint]
    limits = {"minimum": low, "maximum": high} if low is not None else {}
    return dict(KINDS[name].schema) | limits


def _free(value: Any, prefix: str, lines: Mapping[str, str]) -> Schema:
    return {"type": "object", "additionalProperties": _type(value, prefix, lines)}


def _default(value: Any, hint: Any) -> Any:
    """A default as it would be written in TOML; None where there is nothing to say."""
    if value is None or not isinstance(value, (str, int, float, tuple)) or value == "":
        return None
    return None if value == 0 and _kind_of(hint) == "signal" else as_written(value, hint)


def as_written(value: Any, hint: Any) -> Any:
    """A typed value in its TOML spelling: seconds become a time span, bytes a size, 438 a mode."""
    kind = _kind_of(hint)
    if isinstance(value, tuple):
        return [as_written(each, _item(hint)) for each in value]
    if isinstance(value, float):
        return "infinity" if math.isinf(value) else values.format_time_span(value)
    match kind:
        case "mode":
            return f"{value:04o}"
        case "size":
            return values.format_size(value) if value else "0"
        case "signal" if value:
            return values.signal_name(value)
        case _:
            return str(value) if isinstance(value, StrEnum) else value


def _kind_of(hint: Any) -> str:
    if typing.get_origin(hint) is not Annotated:
        return ""
    return next((str(m.extra["kind"]) for m in typing.get_args(hint)[1:] if m.extra), "")


def _item(hint: Any) -> Any:
    arguments = typing.get_args(hint)
    return arguments[0] if arguments else hint


def _resource(key: str) -> Schema:
    line = {"description": key_help.DEFINITION[f"resources.{key}"]}
    if key == "oom_score_adjust":
        return {"type": "integer", "minimum": -1000, "maximum": 1000} | line
    row = resources.ROWS.get(key)
    if row is None:
        return {"type": ["string", "integer"]} | line
    names = {str: "string", int: "integer", float: "number", bool: "boolean"}
    found: Schema = {"type": [names[each] for each in row.types]}
    if row.is_list:
        found = {"anyOf": [found, {"type": "array", "items": found}]}
    return found | line
