# SPDX-License-Identifier: Apache-2.0
"""From a raw TOML table to the typed structs of model.py: every error is collected, none ends the reading; pure.

A reader is built once for each annotation of a struct. It returns the typed value, or FAILED after it has noted why.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import msgspec

from agent.definition import keys, limits, resources
from agent.definition.kinds import KINDS, MAPS, Kind, MapKind, has_type, rewrite_hint, toml_type
from agent.definition.model import Resources, Table
from agent.definition.values import InvalidValue, nearest_hint, shown

KeyPath = tuple[str | int, ...]
ITEMS_MAX = 4096
PROBLEMS_MAX = 200


class Problem(NamedTuple):
    """Something wrong at a key. `meant` is the key that an unknown one was probably meant to be."""

    path: KeyPath
    reason: str
    hint: str = ""
    warning: bool = False
    meant: str = ""


class Problems(list[Problem]):
    """What was found so far, and the keys that there are, for saying what an unknown one might be."""

    def __init__(self, vocabulary: keys.Vocabulary = keys.DEFINITION) -> None:
        super().__init__()
        self.vocabulary = vocabulary


class _Failed:
    """The result of a reader that noted a problem."""


FAILED: Final = _Failed()
Reader = Callable[[Any, KeyPath, Problems], Any]
T = TypeVar("T", bound=Table)

# What the loader fills in; in a file they are unknown keys.
_NOT_IN_FILES = {"Container": {"name", "source"}}


def read_table(kind: type[T], raw: Mapping[str, Any], problems: Problems, **given: Any) -> T:
    """A `kind` with every good key of `raw`; keys with problems keep their defaults. `given` are further fields."""
    return kind(**_fields(kind, raw, (), problems), **given)


def show_path(path: KeyPath) -> str:
    """ "socket[0].listen_stream"; parts that are no bare keys are quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = part.replace("-", "_").isidentifier() and part.isascii()
            text += ("." if text else "") + (part if bare else shown(part))
    return text


def readers(kind: type[Table]) -> dict[str, Reader]:
    """A reader for each key of a table."""
    return _readers(typing.cast("Any", kind))


@functools.cache
def _readers(kind: Any) -> dict[str, Reader]:
    hints = typing.get_type_hints(kind, include_extras=True)
    hidden = _NOT_IN_FILES.get(kind.__name__, set())
    return {
        name: _emptiable(_reader(hints[name])) if struct_default(kind, name) == "" else _reader(hints[name])
        for name in kind.__struct_fields__
        if name not in hidden
    }


def _emptiable(read: Reader) -> Reader:
    """For keys that are not set where they are "": that can be written, too, to take back what another file says."""

    def read_text(value: Any, path: KeyPath, problems: Problems) -> Any:
        return value if value == "" else read(value, path, problems)

    return read_text


def _fields(kind: type[Table], raw: Mapping[str, Any], path: KeyPath, problems: Problems) -> dict[str, Any]:
    known = readers(kind)
    found = {}
    for key, value in raw.items():
        read = known.get(key)
        if read is None:
            _note(problems, _unknown(key, path, known, problems))
            continue
        result = read(value, (*path, key), problems)
        if result is not FAILED:
            found[key] = result
    return found


def _note(problems: Problems, problem: Problem) -> _Failed:
    if len(problems) < PROBLEMS_MAX:
        problems.append(problem)
    return FAILED


def _unknown(key: str, path: KeyPath, known: Iterable[str], problems: Problems) -> Problem:
    hint, meant = problems.vocabulary.meant(key, path, known)
    return Problem((*path, key), "unknown key", hint, meant=meant)


def _reader(annotation: Any) -> Reader:
    extra: Mapping[str, Any] = {}
    bounds: tuple[int | None, int | None] = (None, None)
    if typing.get_origin(annotation) is Annotated:
        annotation, *metadata = typing.get_args(annotation)
        for meta in metadata:
            extra = meta.extra or extra
            bounds = (meta.ge, meta.le)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in {types.UnionType, typing.Union}:
        return _reader(next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        return _list_reader(arguments[0])
    if origin is dict:
        return _map_reader(MAPS[extra["kind"]]) if "kind" in extra else _free_reader(_reader(arguments[1]))
    if annotation is Resources:
        return _resources
    if issubclass(annotation, Table):
        return functools.partial(_table, annotation)
    if issubclass(annotation, StrEnum):
        return functools.partial(_enum, annotation)
    name = extra.get("kind") or {bool: "boolean", int: "integer", str: "line", float: "time_span"}[annotation]
    return functools.partial(_scalar, KINDS[name], bounds)


def _scalar(kind: Kind, bounds: tuple[int | None, int | None], value: Any, path: KeyPath, problems: Problems) -> Any:
    if not has_type(value, kind.types):
        hint = _quoting_hint(path, value) or rewrite_hint(value, wants_list=False) * (str in kind.types)
        return _note(problems, Problem(path, f"expected {kind.expected}, not {toml_type(value)}", hint))
    try:
        result = kind.parse(value)
    except InvalidValue as e:
        return _note(problems, Problem(path, e.reason, e.hint))
    low, high = bounds
    if low is not None and high is not None and not low <= result <= high:
        return _note(problems, Problem(path, f"{result} is out of range", f"it is from {low} to {high}"))
    return result


def _quoting_hint(path: KeyPath, value: object) -> str:
    """For a dotted key that TOML took apart: labels.a.b = "x"."""
    if isinstance(value, dict) and len(value) == 1 and len(path) > 1 and isinstance(path[-1], str):
        return f"keys with dots are quoted: {shown(f'{path[-1]}.{next(iter(value))}')}"
    return ""


def _enum(kind: type[StrEnum], value: Any, path: KeyPath, problems: Problems) -> Any:
    choices = [str(member) for member in kind]
    listed = ", ".join(choices[:-1]) + f" or {choices[-1]}"
    if not isinstance(value, str):
        hint = 'write "no"' if value is False and "no" in choices else ""
        return _note(problems, Problem(path, f"expected {listed}, not {toml_type(value)}", hint))
    if value not in choices:
        hint = nearest_hint(value.lower(), choices)
        return _note(problems, Problem(path, f"{shown(value)} is not one of {listed}", hint))
    return kind(value)


def _list_reader(item: Any) -> Reader:
    read = _reader(item)
    is_tables = isinstance(item, type) and issubclass(item, Table)

    def read_list(value: Any, path: KeyPath, problems: Problems) -> Any:
        if not isinstance(value, list):
            expected = f"an array of tables, [[{path[-1]}]]" if is_tables else "an array"
            hint = f"write [[{path[-1]}]]" if is_tables else rewrite_hint(value, wants_list=True)
            return _note(problems, Problem(path, f"expected {expected}, not {toml_type(value)}", hint))
        if len(value) > ITEMS_MAX:
            return _note(problems, Problem(path, f"has {len(value)} entries", f"at most {ITEMS_MAX} are allowed"))
        found = [read(each, (*path, i), problems) for i, each in enumerate(value)]
        return FAILED if any(each is FAILED for each in found) else tuple(found)

    return read_list


def _table(kind: type[Table], value: Any, path: KeyPath, problems: Problems) -> Any:
    if not isinstance(value, dict):
        return _note(problems, _no_table(value, path))
    # With a bad key the rest is still built, so that checks across keys can speak about it.
    return kind(**_fields(kind, value, path, problems))


def _no_table(value: object, path: KeyPath) -> Problem:
    name = path[-1] if isinstance(path[-1], str) else path[0]
    hint = f"write [{name}]" if isinstance(value, list) else f"keys of {name} follow a line [{name}]"
    return Problem(path, f"expected a table, not {toml_type(value)}", hint)


def _map_reader(kind: MapKind) -> Reader:
    def read_map(value: Any, path: KeyPath, problems: Problems) -> Any:
        if not isinstance(value, dict):
            hint = 'write { NAME = "value" }'
            return _note(problems, Problem(path, f"expected a table, not {toml_type(value)}", hint))
        if len(value) > ITEMS_MAX:
            return _note(problems, Problem(path, f"has {len(value)} entries", f"at most {ITEMS_MAX} are allowed"))
        found = {key: _entry(kind, key, each, (*path, key), problems) for key, each in value.items()}
        return FAILED if any(each is FAILED for each in found.values()) else found

    return read_map


def _entry(kind: MapKind, key: str, value: Any, path: KeyPath, problems: Problems) -> Any:
    if not has_type(value, kind.types):
        hint = _quoting_hint(path, value) or rewrite_hint(value, wants_list=False)
        return _note(problems, Problem(path, f"expected {kind.expected}, not {toml_type(value)}", hint))
    try:
        return kind.parse(key, value)
    except InvalidValue as e:
        return _note(problems, Problem(path, e.reason, e.hint))


def _free_reader(read: Reader) -> Reader:
    """A table with free keys whose values are all read alike."""

    def read_free(value: Any, path: KeyPath, problems: Problems) -> Any:
        if not isinstance(value, dict):
            return _note(problems, _no_table(value, path))
        found = {key: read(each, (*path, key), problems) for key, each in value.items()}
        return FAILED if any(each is FAILED for each in found.values()) else found

    return read_free


# [resources]: its keys are the rows of resources.py


def _resources(value: Any, path: KeyPath, problems: Problems) -> Any:
    if not isinstance(value, dict):
        return _note(problems, _no_table(value, path))
    found = {key: _resource_key(key, each, path, problems) for key, each in value.items()}
    good = {key: each for key, each in found.items() if each is not FAILED}
    return Resources(
        properties={key: each for key, each in good.items() if key in resources.ROWS},
        limits={key.removeprefix("limit_"): each for key, each in good.items() if key.startswith("limit_")},
        oom_score_adjust=good.get("oom_score_adjust"),
    )


def _resource_key(key: str, value: Any, path: KeyPath, problems: Problems) -> Any:
    here = (*path, key)
    limit = key.removeprefix("limit_")
    if key in resources.ROWS:
        return _resource(resources.ROWS[key], value, here, problems)
    if key.startswith("limit_") and limit in limits.LIMITS:
        parse = functools.partial(limits.parse_limit, limit)
        return _checked(parse, (str, int), limits.EXPECTED, value, here, problems)
    if key == "oom_score_adjust":
        return _checked(limits.parse_oom_score_adjust, (int,), "an integer", value, here, problems)
    return _note(problems, _unknown(key, path, keys.RESOURCE_KEYS, problems))


def _resource(row: resources.Row, value: Any, path: KeyPath, problems: Problems) -> Any:
    """The text of one row, the entries of a list on lines of their own."""
    if not row.is_list or not isinstance(value, list):
        return _checked(row.parse, row.types, row.expected, value, path, problems)
    texts = [_checked(row.parse, row.types, row.expected, v, (*path, i), problems) for i, v in enumerate(value)]
    return FAILED if FAILED in texts else "\n".join(texts)


def _checked(
    parse: Callable[[Any], Any],
    accepted: tuple[type, ...],
    expected: str,
    value: Any,
    path: KeyPath,
    problems: Problems,
) -> Any:
    return _scalar(Kind(accepted, expected, parse), (None, None), value, path, problems)


def struct_keys(kind: type[Table]) -> Iterable[str]:
    """The keys that a file may have in this table."""
    return keys.RESOURCE_KEYS if kind is Resources else readers(kind)


def struct_default(kind: type[Table], key: str) -> Any:
    """The default of a key as its struct has it; msgspec.NODEFAULT where it has none."""
    field = next(field for field in msgspec.structs.fields(kind) if field.name == key)
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
