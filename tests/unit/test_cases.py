# SPDX-License-Identifier: Apache-2.0
"""Definitions as data: each tests/cases/NAME.toml says in its first lines what the loader says of it.

    ## expect: ok
    ## expect: error KEY line N: words     ("-" for no key or no line; warning instead of error)

All problems must be listed, and each expectation must be met: by key, by line, and by every word of it in reason or
hint. A quoted or bracketed stretch is found as a whole.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.definition.load import parse_text

CASES = Path(__file__).parent.parent / "cases"
_EXPECTATION = re.compile(r"## expect: (?:ok|(error|warning) (\S+) line (\d+|-): (.+))")


class Expectation(NamedTuple):
    warning: bool
    key: str
    line: int
    words: list[str]


def expectations(text: str) -> list[Expectation]:
    found = []
    for line in text.splitlines():
        if not line.startswith("##"):
            break
        match = _EXPECTATION.fullmatch(line)
        assert match, f"not an expectation: {line}"
        if match[1]:
            key, number = match[2].replace("-", "", match[2] == "-"), match[3]
            found.append(Expectation(match[1] == "warning", key, int(number) if number != "-" else 0, match[4].split()))
    assert text.startswith("##"), "a case begins with its expectations"
    return found


@pytest.mark.parametrize("name", sorted(path.stem for path in CASES.glob("*.toml")))
def test_case(name: str) -> None:
    path = CASES / f"{name}.toml"
    text = path.read_text()
    expected = expectations(text)
    definition, diagnostics = parse_text(text, name, str(path))
    assert [(d.warning, d.key, d.line) for d in diagnostics] == [e[:3] for e in expected], [str(d) for d in diagnostics]
    for diagnostic, expectation in zip(diagnostics, expected, strict=True):
        said = f"{diagnostic.reason} {diagnostic.hint}"
        assert all(word in said for word in expectation.words), str(diagnostic)
        assert diagnostic.container == name
    assert (definition is None) == any(not expectation.warning for expectation in expected)


def test_there_are_cases() -> None:
    assert len(list(CASES.glob("*.toml"))) >= 40
