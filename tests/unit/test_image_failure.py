# SPDX-License-Identifier: Apache-2.0
"""What skopeo and umoci say, word for word, and what becomes of it."""

from __future__ import annotations

import pytest

from agent.images import failure

STAMP = 'time="2026-11-23T13:13:22Z" level=fatal msg='


@pytest.mark.parametrize(
    ("said", "what", "again"),
    [
        (r'"Error parsing image name \"docker://r/x:1\": reading manifest 1: manifest unknown"', "no such", False),
        (r'"pinging container registry r: Get \"http://r/v2/\": dial tcp 1.2.3.4:80: connect: connection refused"',
         "cannot be reached", True),
        (r'"pinging container registry r: Get \"https://r/v2/\": http: server gave HTTP response to HTTPS client"',
         "does not speak TLS", False),
        ('"Error loading trust policy: no policy.json file found at any of: \\"/etc\\""', "is missing", False),
        ('"Source image rejected: Running image docker://r/x:1 is rejected by policy."', "rejects the image", False),
        ('"writing blob: write /var/lib/cleat/images/work/x: no space left on device"', "no space left", False),
        ('"reading manifest latest in r/x: unauthorized: authentication required"', "let us read", False),
        (r'"getting username and password: reading JSON file \"/a\": unexpected end of JSON input"', "logins", False),
        ('"dial tcp: lookup registry.example: no such host"', "cannot be resolved", True),
        ('"reading blob: Get x: unexpected EOF"', "cannot be reached", True),
        ('"toomanyrequests: You have reached your pull rate limit"', "more downloads", False),
        ('"x509: certificate signed by unknown authority"', "certificate is not accepted", False),
        ('"something that nobody foresaw"', "cannot be fetched", True),
    ],
)  # fmt: skip
def test_classified(said: str, what: str, again: bool) -> None:  # noqa: FBT001
    error, retry = failure.classify(f"Getting image source signatures\n{STAMP}{said}\n", "r/x:1")
    assert what in error.what
    assert "r/x:1" in error.what
    assert error.why
    assert error.hint
    assert retry is again


def test_the_advice_names_the_registry() -> None:
    error, _ = failure.classify(f'{STAMP}"x509: certificate signed by unknown authority"', "r.example:5000/x:1")
    assert "/etc/containers/certs.d/r.example:5000/" in error.hint


def test_words_are_the_last_error_without_frills() -> None:
    text = f'{STAMP}"first"\n\x1b[31m   \N{VECTOR OR CROSS PRODUCT} create rootfs: unpack layer: bad \x1b[0m\n\n'
    assert failure.words(f'{STAMP}"a \\"b\\""') == 'a "b"'
    assert failure.words("\x1b[31m   \N{VECTOR OR CROSS PRODUCT} unpack layer: bad\x1b[0m\n") == "unpack layer: bad"
    assert failure.words(text) == "first"
    assert failure.words("") == "no reason given"
    assert len(failure.words("x" * 100_000)) <= 600
