# SPDX-License-Identifier: Apache-2.0
"""Text to value and back: spans, sizes, modes, signals, exit statuses, names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.definition import values
from agent.definition.values import InvalidValue


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("1min 30s", 90),
        ("1min30s", 90),
        ("5", 5),
        ("2.5", 2.5),
        (".5s", 0.5),
        ("100ms", 0.1),
        ("15us", 0.000015),
        ("15 µs", 0.000015),
        ("2h", 7200),
        ("1d 1h", 90000),
        ("1w", 604800),
        ("1M", 2629800),
        ("1y", 31557600),
        ("1month", 2629800),
        ("3 hours 2minutes", 10920),
        ("infinity", math.inf),
        (" infinity ", math.inf),
        ("0", 0),
        (7, 7),
        (0.25, 0.25),
    ],
)
def test_time_span(text: str | float, seconds: float) -> None:
    assert values.parse_time_span(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", " ", "s", "ten", "-5", "5 apples", "1,5s", "5S", "infinity s", "1e3", -1, math.inf, math.nan, "9" * 40]
)
def test_no_time_span(text: str | float) -> None:
    with pytest.raises(InvalidValue) as caught:
        values.parse_time_span(text)
    assert caught.value.hint


@given(st.integers(0, 10**15))
def test_time_span_round_trip(microseconds: int) -> None:
    seconds = microseconds / 1e6
    assert values.parse_time_span(values.format_time_span(seconds)) == pytest.approx(seconds, abs=1e-6, rel=1e-12)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(90, "1min 30s"), (0, "0"), (0.1, "100ms"), (math.inf, "infinity"), (86400, "1d"), (240, "4min")],
)
def test_format_time_span(seconds: float, text: str) -> None:
    assert values.format_time_span(seconds) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 << 20),
        ("1.5G", 3 << 29),
        ("4096", 4096),
        ("1K", 1024),
        ("2B", 2),
        ("1 G", 1 << 30),
        ("1G 512M", (1 << 30) + (512 << 20)),
        ("1T", 1 << 40),
        ("1P", 1 << 50),
        ("1E", 1 << 60),
        (0, 0),
        (123, 123),
    ],
)
def test_size(text: str | int, size: int) -> None:
    assert values.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "M", "512m", "512MB", "512MiB", "-1", "1X", "1M 1G", "99E", -5, "1.2.3", "9" * 99]
)
def test_no_size(text: str | int) -> None:
    with pytest.raises(InvalidValue):
        values.parse_size(text)


def test_size_hint_names_the_spelling() -> None:
    with pytest.raises(InvalidValue) as caught:
        values.parse_size("512MiB")
    assert '"512M"' in caught.value.hint


@given(st.integers(0, 2**50))
def test_formatted_size_is_near(size: int) -> None:
    assert values.parse_size(values.format_size(size)) == pytest.approx(size, rel=0.06)


@pytest.mark.parametrize(("text", "mode"), [("0660", 0o660), ("755", 0o755), ("01777", 0o1777), ("0", 0)])
def test_mode(text: str, mode: int) -> None:
    assert values.parse_mode(text) == mode


@pytest.mark.parametrize("text", ["", "0o660", "888", "u=rw", "77777", "0660 "])
def test_no_mode(text: str) -> None:
    with pytest.raises(InvalidValue):
        values.parse_mode(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGTERM", 15),
        ("TERM", 15),
        ("term", 15),
        (15, 15),
        ("9", 9),
        ("SIGRTMIN+3", 37),
        ("RTMAX-1", 63),
        ("RTMIN", 34),
    ],
)
def test_signal(text: str | int, number: int) -> None:
    assert values.parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "SIGTREM", 0, 65, "0", "SIGRTMIN+40", "RTMAX-60", "-1", "²"])
def test_no_signal(text: str | int) -> None:
    with pytest.raises(InvalidValue):
        values.parse_signal(text)


@pytest.mark.parametrize("number", range(1, 65))
def test_signal_names_are_read_again(number: int) -> None:
    assert values.parse_signal(values.signal_name(number)) == number


@pytest.mark.parametrize(
    ("text", "status"),
    [(0, 0), (143, 143), ("143", 143), ("SIGTERM", 143), ("TEMPFAIL", 75), ("EX_CONFIG", 78), ("KILL", 137)],
)
def test_exit_status(text: str | int, status: int) -> None:
    assert values.parse_exit_status(text) == status


@pytest.mark.parametrize("text", [256, -1, "TEMPFIAL", "", "1000"])
def test_no_exit_status(text: str | int) -> None:
    with pytest.raises(InvalidValue):
        values.parse_exit_status(text)


@pytest.mark.parametrize("name", ["a", "web", "web-1.2_x", "0", "web@1", "web@eth0.100", "worker@Blue", "a" * 64])
def test_name(name: str) -> None:
    assert values.check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "Web", "-a", ".a", "a b", "a/b", "a@", "@a", "a@b@c", "a" * 65, "ä", "a\n", "a@-x", "a@/", "../a"]
)
def test_no_name(name: str) -> None:
    with pytest.raises(InvalidValue):
        values.check_name(name)


def test_template_of() -> None:
    assert values.template_of("web@1") == "web@"
    assert values.template_of("web") == ""


@given(st.one_of(st.text(), st.integers(), st.floats()))
def test_parsers_raise_nothing_else(value: Any) -> None:
    for parse in (
        values.parse_time_span,
        values.parse_size,
        values.parse_mode,
        values.parse_signal,
        values.parse_exit_status,
    ):
        if isinstance(value, float) and parse is not values.parse_time_span:
            continue
        if isinstance(value, int) and parse is values.parse_mode:
            continue
        reason = refusal(parse, value)
        assert reason.isprintable()
        assert len(reason) < 200


def refusal(parse: Callable[[Any], object], value: Any) -> str:
    try:
        parse(value)
    except InvalidValue as e:
        return e.reason
    return ""


@given(st.text())
def test_shown_is_one_short_line(text: str) -> None:
    said = values.shown(text)
    assert said.isprintable()
    assert len(said) <= 60
