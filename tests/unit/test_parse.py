# SPDX-License-Identifier: Apache-2.0
"""The walk from a raw table to structs; what it says of mistakes; that nothing but diagnostics comes out of it."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.definition import toml
from agent.definition.keys import DEFINITION, to_snake
from agent.definition.load import from_raw, parse_text
from agent.definition.model import Container, Table
from agent.definition.parse import PROBLEMS_MAX, Problem, Problems, read_table, show_path, struct_keys


def read(raw: dict[str, Any]) -> tuple[Container, Problems]:
    problems = Problems()
    return read_table(Container, raw, problems, name="web"), problems


def hint(raw: dict[str, Any]) -> str:
    _, problems = read(raw)
    (problem,) = problems
    assert problem.reason == "unknown key"
    return problem.hint


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"imag": "x"}, 'did you mean "image"?'),
        ({"Image": "x"}, 'did you mean "image"?'),
        ({"environment-files": []}, 'did you mean "environment_files"?'),
        ({"restart": "x"}, 'did you mean "restart" in [service]?'),
        ({"MemoryMax": "x"}, 'did you mean "memory_max" in [resources]?'),
        ({"limit_nofile": "x"}, 'did you mean "limit_nofile" in [resources]?'),
        ({"listen_stream": "x"}, 'did you mean "listen_stream" in [[socket]]?'),
        ({"volumes": []}, "did you mean [[mount]]?"),
        ({"healthcheck": {}}, "did you mean [health]?"),
        ({"depends_on": []}, 'did you mean "requires"?'),
        ({"service": {"image": "x"}}, 'did you mean "image", above all tables?'),
        ({"service": {"memory_max": "x"}}, 'did you mean "memory_max" in [resources]?'),
        ({"service": {"TimeoutStopSec": 1}}, 'did you mean "timeout_stop_sec"?'),
        ({"resources": {"CPUQuota": 1}}, 'did you mean "cpu_quota"?'),
        ({"resources": {"LimitNOFILE": 1}}, 'did you mean "limit_nofile"?'),
        ({"name": "x"}, "a container is named by its file, NAME.toml"),
        ({"xyzzy": 1}, ""),
    ],
)
def test_unknown_key(raw: dict[str, Any], words: str) -> None:
    assert hint(raw) == words


@pytest.mark.parametrize(
    ("directive", "key"),
    [
        ("MemoryMax", "memory_max"),
        ("CPUQuota", "cpu_quota"),
        ("IOReadIOPSMax", "io_read_iops_max"),
        ("AllowedCPUs", "allowed_cpus"),
        ("memory-max", "memory_max"),
        ("TimeoutStartSec", "timeout_start_sec"),
    ],
)
def test_snake_case_of_directives(directive: str, key: str) -> None:
    assert to_snake(directive) == key


def test_keys_with_problems_keep_their_defaults_and_others_are_read() -> None:
    container, problems = read({"user": 5, "hostname": "h", "service": {"restart": 1, "restart_steps": 3}})
    assert (container.user, container.hostname, container.service.restart_steps) == ("", "h", 3)
    assert [problem.path for problem in problems] == [("user",), ("service", "restart")]


def test_every_key_refuses_a_date() -> None:
    """No reader is left that takes anything."""
    for table, keys in DEFINITION.tables.items():
        for key in keys:
            raw: dict[str, Any] = {key: dt.date(2026, 1, 1)}
            if table:
                raw = {table: [raw] if table in {"socket", "mount", "credential"} else raw}
            _, problems = read(raw)
            assert len(problems) == 1, (table, key)
            assert "not a date or time" in problems[0].reason


def test_problems_are_capped() -> None:
    _, problems = read({f"key{i}": i for i in range(1000)})
    assert len(problems) == PROBLEMS_MAX


def test_long_values_are_refused() -> None:
    _, problems = read({"description": "x" * 5000, "command": ["x" * 200_000], "groups": ["a"] * 5000})
    assert [problem.path for problem in problems] == [("description",), ("command", 0), ("groups",)]


def test_show_path() -> None:
    assert show_path(("socket", 0, "listen_stream")) == "socket[0].listen_stream"
    assert show_path(("labels", "a.b")) == 'labels."a.b"'
    assert show_path(("labels", "a\nb")) == 'labels."a\\u000ab"'
    assert show_path(()) == ""


def test_struct_keys_leave_out_what_the_loader_fills_in() -> None:
    keys = set(struct_keys(Container))
    assert "image" in keys
    assert not keys & {"name", "source"}


def test_problem_is_a_value() -> None:
    assert Problem(("a",), "b") == Problem(("a",), "b")
    assert issubclass(Container, Table)


# Anything in, diagnostics out

_SCALARS = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["/a/../b", "1h", "5%", "host", "a\0b", "\n", "[::1]:80", "8080:80", "CAP_CHOWN", "0:1:2", "infinity"]
    ),
    st.just(dt.datetime(2026, 1, 1, tzinfo=dt.UTC)),
)
_WORDS = st.one_of(
    st.sampled_from(sorted({key for keys in DEFINITION.tables.values() for key in keys} | set(DEFINITION.tables))),
    st.text(max_size=8),
)
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_WORDS, inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=400)
@given(st.dictionaries(_WORDS, _TREES, max_size=8))
def test_any_table_is_read(raw: dict[str, Any]) -> None:
    _, problems = read(raw)
    for problem in problems:
        assert show_path(problem.path).isprintable()
        assert problem.reason.isprintable()
        assert problem.hint.isprintable()
        assert len(problem.reason) < 400
    assert from_raw(raw, "web", "-").container.name == "web"


_VALUES = st.sampled_from(
    [
        '"x"',
        "1",
        "true",
        "[]",
        "{}",
        '["a", "b"]',
        '"1min"',
        '"512M"',
        '"/a"',
        "[[1]]",
        "1.5",
        '"%i"',
        '"%"',
        '"a\\nb"',
        "{ a = 1 }",
    ]
)
_LINES = st.one_of(
    st.tuples(_WORDS, _VALUES).map(lambda pair: f"{pair[0]} = {pair[1]}"),
    st.sampled_from(
        [f"[{name}]" for name in DEFINITION.tables] + [f"[[{name}]]" for name in ("socket", "mount", "credential")]
    ),
    st.text(max_size=20),
)


@settings(max_examples=400)
@given(st.lists(_LINES, max_size=12))
def test_any_text_is_read(lines: list[str]) -> None:
    definition, diagnostics = parse_text("\n".join(lines), "web", "/nowhere/web.toml")
    assert (definition is None) == any(not d.warning for d in diagnostics)
    for diagnostic in diagnostics:
        assert str(diagnostic).isprintable()
        assert 0 <= diagnostic.line <= "\n".join(lines).count("\n") + 1


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_read(content: bytes) -> None:
    result = toml.read(content)
    if isinstance(result, toml.SyntaxFault):
        assert result.reason
    else:
        read(result[0])


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000,
        "a = " + "{a=" * 5000,
        "a = " + "9" * 5000,
        "[" * 5000,
        '"' * 5000,
        "a=1\n" * 5000,
        "a = 1e999",
    ],
)
def test_hard_texts(text: str) -> None:
    definition, diagnostics = parse_text(text, "web", "web.toml")
    assert definition is None
    assert diagnostics
