# SPDX-License-Identifier: Apache-2.0
"""References of images: every spelling of one image is one text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.definition import words
from agent.errors import InvalidArgument
from agent.images.reference import parse

SHA = "sha256:" + "a1" * 32


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/library/nginx:1.27", "docker.io/library/nginx:1.27"),
        ("grafana/loki:3", "docker.io/grafana/loki:3"),
        ("docker://quay.io/a/b/c:1", "quay.io/a/b/c:1"),
        ("localhost/mine", "localhost/mine:latest"),
        ("localhost:5000/mine:1", "localhost:5000/mine:1"),
        ("127.0.0.1:5000/mine", "127.0.0.1:5000/mine:latest"),
        ("[::1]:5000/mine:2", "[::1]:5000/mine:2"),
        (f"nginx@{SHA}", f"docker.io/library/nginx@{SHA}"),
        (f"nginx:1.27@{SHA}", f"docker.io/library/nginx@{SHA}"),
        ("oci:/srv/layout:v1", "oci:/srv/layout:v1"),
        ("oci-archive:/srv/a.tar", "oci-archive:/srv/a.tar"),
        ("docker-archive:/srv/a.tar:name:tag", "docker-archive:/srv/a.tar:name:tag"),
        ("dir:/srv/d", "dir:/srv/d"),
    ],
)
def test_canonical(text: str, canonical: str) -> None:
    assert words.image(text) == text
    found = parse(text)
    assert str(found) == canonical
    assert str(parse(canonical)) == canonical
    assert found.source == (f"docker://{canonical}" if found.is_remote else canonical)


def test_a_tag_beside_a_digest_is_not_passed_on() -> None:
    found = parse(f"quay.io/a/b:1@{SHA}")
    assert (found.tag, found.digest) == ("1", SHA)
    assert found.is_fixed
    assert found.source == f"docker://quay.io/a/b@{SHA}"


@pytest.mark.parametrize("text", ["", ":tag", "nginx@sha256:12", "a/b:!", "oci:relative", "dir:", "x@md5:1"])
def test_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse(text)


@given(
    st.from_regex(
        r"([a-z0-9.]{1,9}(:[0-9]{1,4})?/)?[a-z0-9]{1,9}(:[a-z0-9]{1,9})?(@sha256:[0-9a-f]{64})?", fullmatch=True
    )
)
def test_parsing_is_stable(text: str) -> None:
    once = parse(text)
    assert str(parse(str(once))) == str(once)
    assert "//" not in str(once)
