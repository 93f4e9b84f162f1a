# SPDX-License-Identifier: Apache-2.0
"""What is said about an older systemd."""

from __future__ import annotations

import pytest

from agent.systemd.lacking import NEEDED, lacking


@pytest.mark.parametrize("version", ["257.9-1~deb13u1", f"{NEEDED}", "258~rc2", "v260", ""])
def test_nothing_is_lacking(version: str) -> None:
    assert not lacking(version)


def test_an_older_version_lacks_more() -> None:
    assert any("cleat reload-agent" in text for text in lacking("252.39-1~deb12u2"))
    assert not any("cleat reload-agent" in text for text in lacking("253.1"))
    assert 0 < len(lacking("253.1")) < len(lacking("252.39-1~deb12u2"))
