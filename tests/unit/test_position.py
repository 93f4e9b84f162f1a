# SPDX-License-Identifier: Apache-2.0
"""Where keys stand in a TOML text."""

from __future__ import annotations

import string

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from agent.definition.position import KeyPath, Position, Positions, locate

TEXT = '''\
# "comment" = 1
a = 1
"b.c".d = """x
y = 3
""" # behind
  indented = 'a # b'
e = { f = 1, "g" = [1, { h = 2 }], 'i'.j = 3 } # k = 1
[[socket]]
  name = "x"
[[socket]]
listen = [
  "a", # b = ]
  'c',
]
[socket.deep]
z = 1
[x . "y"]
z = 2
date = 1979-05-27 07:32:00
empty = ""
quotes = """a""""
literal = \'\'\'
k = 1\'\'\'
esc = "a\\"b = 2"
"\\u00e4" = 5
last = true
'''


@pytest.mark.parametrize(
    ("path", "position"),
    [
        (("a",), (2, 1)),
        (("b.c", "d"), (3, 7)),
        (("indented",), (6, 3)),
        (("e",), (7, 1)),
        (("e", "f"), (7, 7)),
        (("e", "g"), (7, 14)),
        (("e", "g", 1), (7, 24)),
        (("e", "g", 1, "h"), (7, 26)),
        (("e", "i", "j"), (7, 40)),
        (("socket", 0), (8, 3)),
        (("socket", 0, "name"), (9, 3)),
        (("socket", 1, "listen"), (11, 1)),
        (("socket", 1, "listen", 1), (13, 3)),
        (("socket", 1, "deep", "z"), (16, 1)),
        (("x", "y"), (17, 6)),
        (("x", "y", "z"), (18, 1)),
        (("x", "y", "date"), (19, 1)),
        (("x", "y", "empty"), (20, 1)),
        (("x", "y", "quotes"), (21, 1)),
        (("x", "y", "literal"), (22, 1)),
        (("x", "y", "esc"), (24, 1)),
        (("x", "y", "ä"), (25, 1)),
        (("x", "y", "last"), (26, 1)),
        # What is not there: the nearest around it.
        (("socket", 0, "missing"), (8, 3)),
        (("nothing",), (0, 0)),
        ((), (0, 0)),
    ],
)
def test_position(path: KeyPath, position: tuple[int, int]) -> None:
    assert locate(TEXT, path) == Position(*position)


def test_nothing_but_keys_is_found() -> None:
    found = {path for path in Positions(TEXT).offsets if isinstance(path[-1], str)}
    expected = set(_paths(tomli.loads(TEXT), ()))
    assert {path for path in expected if isinstance(path[-1], str)} <= found
    assert not any("k" in path or "comment" in path for path in found)


def _paths(value: object, path: KeyPath) -> list[KeyPath]:
    if isinstance(value, dict):
        entries: list[tuple[str | int, object]] = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    else:
        return []
    return [p for key, each in entries for p in [(*path, key), *_paths(each, (*path, key))]]


def test_crlf() -> None:
    assert locate("a = 1\r\nb = [\r\n 2,\r\n]\r\nc = 3\r\n", ("c",)) == Position(5, 1)


_KEYS = st.one_of(
    st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=5),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=5).map(
        lambda key: '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
    ),
)
_VALUES = st.recursive(
    st.one_of(
        st.integers().map(str),
        st.booleans().map(lambda value: str(value).lower()),
        st.sampled_from(['"a = [1"', "'#'", '"""x\n[y]\nz = 1\n"""', "1.5", '"\\""', "1979-05-27T07:32:00Z"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[\n" + ",\n".join(items) + "]"),
        st.dictionaries(_KEYS, inner, max_size=3).map(
            lambda items: "{ " + ", ".join(f"{key} = {value}" for key, value in items.items()) + " }"
        ),
    ),
    max_leaves=6,
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "[{}]\n", "[[{}]]\n", "[t.{}]\n", "[[t.{}]]\n"]),
            _KEYS,
            st.dictionaries(_KEYS, _VALUES, max_size=3),
        )
    )
)
def test_every_key_of_valid_toml_is_found(parts: list[tuple[str, str, dict[str, str]]]) -> None:
    text = "".join(
        header.format(name) + "".join(f"{key} = {value}\n" for key, value in pairs.items())
        for header, name, pairs in parts
    )
    try:
        table = tomli.loads(text)
    except tomli.TOMLDecodeError:
        return
    positions = Positions(text)
    assert set(_paths(table, ())) <= positions.offsets.keys()


@given(st.text(alphabet="ab=.[]{}\"'#,\n\\ 1", max_size=200))
def test_any_text_is_scanned_to_its_end(text: str) -> None:
    for path in Positions(text).offsets:
        assert locate(text, path).line > 0


def test_deep_nesting() -> None:
    assert locate("a = " + "[" * 100_000, ("a",)) == Position(1, 1)
