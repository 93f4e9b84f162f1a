# SPDX-License-Identifier: Apache-2.0
"""Environment files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.definition.env_file import parse


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("", {}),
        ("A=1\nB=2", {"A": "1", "B": "2"}),
        ("# A=1\n; B=2\n\n  \nC=3\n", {"C": "3"}),
        ("A=\n", {"A": ""}),
        ("A=a b  \n", {"A": "a b"}),
        ("A='a  b'  \n", {"A": "a  b"}),
        ('A="a b "c\n', {"A": "a b c"}),
        ("A='a\nb'\nB=1\n", {"A": "a\nb", "B": "1"}),
        ('A="a\\"b\\$c\\d"\n', {"A": 'a"b$c\\d'}),
        ("A='a\\b'\n", {"A": "a\\b"}),
        ("A=a\\\nb\nB=1", {"A": "ab", "B": "1"}),
        ("A=a\\ b\n", {"A": "a b"}),
        ("# comment \\\nA=1\nB=2\n", {"B": "2"}),
        ("A=1\nA=2\n", {"A": "2"}),
        ("  A = 1 \r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("export A=1\n", {"A": "1"}),
        ("a.b-c=1#x\n", {"a.b-c": "1#x"}),
        ("\ufeffA=1\n", {"A": "1"}),
        ("A=ä=b\n", {"A": "ä=b"}),
    ],
)
def test_parse(text: str, variables: dict[str, str]) -> None:
    assert parse(text) == (variables, [])


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("A=1\nB\nC=2\n", 2, "is not NAME=VALUE"),
        ("A=1\n\n=2\n", 3, "is not NAME=VALUE"),
        ("A='x\nB=2\n", 1, "is not closed"),
        ("A=1\nB C=2\n", 2, "name of a variable"),
        ("HOME='/\nroot:x'\n", 1, "line break"),
        ("A=a\0b\n", 1, "NUL"),
    ],
)
def test_fault(text: str, line: int, words: str) -> None:
    _, faults = parse(text)
    assert [fault.line for fault in faults] == [line] or faults[0].line == line
    assert words in faults[0].reason


def test_good_lines_around_a_fault_count() -> None:
    variables, faults = parse("A=1\nB\nC=2\n")
    assert variables == {"A": "1", "C": "2"}
    assert len(faults) == 1


def test_faults_are_capped() -> None:
    assert len(parse("x\n" * 1000)[1]) == 20


def test_large_file() -> None:
    text = "".join(f"V{i}='value {i}'\n" for i in range(20_000))
    variables, faults = parse(text)
    assert (len(variables), faults) == (20_000, [])


@given(st.text(alphabet="AB= '\"\\#;\n\t$x", max_size=60))
def test_anything(text: str) -> None:
    variables, faults = parse(text)
    assert all(name and "=" not in name for name in variables)
    assert all(fault.line >= 1 and fault.reason for fault in faults)
