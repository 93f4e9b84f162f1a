# SPDX-License-Identifier: Apache-2.0
"""The page for Prometheus, and the little HTTP it comes over."""

from __future__ import annotations

import re

import pytest

from agent.container.figures import Stats
from agent.daemon.exposition import OF_STATS, OF_STATUS, escape, text
from agent.daemon.metrics import BadRequest, answer, parse
from agent.status import State, Status

LINE = re.compile(r'[a-z_]+\{[a-z]+="(?:[^"\\\n]|\\.)*"(?:,[a-z]+="[a-z]+")?\} -?[0-9.e+-]+')


def page() -> str:
    statuses = [
        Status(name="db", state=State.RUNNING, ready=True, restarts=2, started_at=5.5, health="healthy"),
        Status(name="web", state=State.FAILED, exit_code=137, oom_killed=True),
    ]
    return text("1.0", statuses, [Stats(name="db", id="1", time=0, cpu_usage_usec=1_500_000, memory_current=4096)])


def test_every_line_is_well_formed() -> None:
    lines = page().splitlines()
    assert all(LINE.fullmatch(line) or re.match(r"# (HELP|TYPE) [a-z_]+ .+", line) for line in lines), lines


def test_what_is_said() -> None:
    lines = page().splitlines()
    assert 'cleat_agent_info{version="1.0"} 1' in lines
    assert 'cleat_container_state{name="db",state="running"} 1' in lines
    assert 'cleat_container_state{name="web",state="running"} 0' in lines
    assert 'cleat_container_restarts_total{name="db"} 2' in lines
    assert 'cleat_container_healthy{name="db"} 1' in lines
    assert 'cleat_container_exit_code{name="web"} 137' in lines
    assert 'cleat_container_oom_killed{name="web"} 1' in lines
    assert 'cleat_container_cpu_seconds_total{name="db"} 1.5' in lines


def test_what_is_not_known_is_left_out() -> None:
    assert 'cleat_container_healthy{name="web"}' not in page()
    assert "cleat_container_memory_limit_bytes" not in page()
    assert 'cleat_container_memory_bytes{name="web"}' not in page()


def test_names_follow_the_conventions() -> None:
    for family in (*OF_STATUS, *OF_STATS):
        assert family.name.endswith("_total") == (family.kind == "counter"), family.name
        assert family.help.endswith(".")


def test_labels_are_escaped() -> None:
    assert escape('a"b\\c\nd') == r"a\"b\\c\nd"


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /metrics HTTP/1.1", "GET"),
        (b"HEAD /metrics?x=1 HTTP/1.0", "HEAD"),
        (b"GET /other HTTP/1.1", "404 Not Found"),
        (b"POST /metrics HTTP/1.1", "405 Method Not Allowed"),
        (b"GET /metrics HTTP/2", "400 Bad Request"),
        (b"GET  /metrics HTTP/1.1", "400 Bad Request"),
        (b"\xff\x00", "400 Bad Request"),
    ],
)
def test_requests(line: bytes, status: str) -> None:
    found = parse(line + b"\r\nHost: x\r\n\r\n")
    assert (found.status if isinstance(found, BadRequest) else found) == status


def test_answers() -> None:
    whole = answer("200 OK", b"abc", content_type="text/plain")
    assert whole.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: 3\r\n" in whole
    assert whole.endswith(b"\r\n\r\nabc")
    assert answer("200 OK", b"abc", content_type="text/plain", with_body=False).endswith(b"\r\n\r\n")
    assert b"Allow: GET, HEAD\r\n" in answer("405 Method Not Allowed", b"", content_type="text/plain")
