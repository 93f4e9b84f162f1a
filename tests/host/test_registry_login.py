# SPDX-License-Identifier: Apache-2.0
"""A registry with a certificate of its own authority, and a login: what a definition says of both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.host import registry
from tests.host.hosts import Host
from tests.host.registry import PASSWORD, QUICK, SECURE_ADDRESS, USER, SecureRegistry, auth_file, make

AUTH_FILE = "/etc/cleat/auth.json"


@pytest.fixture
def images(clean: Host) -> Iterator[Host]:
    """The host without any image, before and after."""
    registry.forget(clean)
    yield clean
    clean.run(f"rm -f /etc/cleat/containers/*.toml {AUTH_FILE}; cleat reload-agent", check=False)
    registry.forget(clean)


@pytest.fixture
def hub(images: Host) -> Iterator[SecureRegistry]:
    found = SecureRegistry(images)
    found.start()
    yield found
    found.stop()


@pytest.fixture
def image(hub: SecureRegistry) -> str:
    return hub.push(make(hub.host, "private"), "private:1")


def define(host: Host, image: str, *keys: str) -> None:
    lines = "\n".join(["retry = 0", *keys])
    host.definition("private", f'image = "{image}"\n[pull]\n{lines}\n{QUICK}')
    host.reload()


def failure(host: Host) -> str:
    status = host.status("private")
    assert status["error_code"] == "pull-failed"
    assert PASSWORD not in str(status)
    return str(status["error"])


def test_a_login_and_an_authority(hub: SecureRegistry, image: str) -> None:
    hub.trust(hub.authority)
    hub.host.write(AUTH_FILE, auth_file(USER, PASSWORD), 0o600)
    define(hub.host, image, f'auth_file = "{AUTH_FILE}"')
    assert hub.host.status("private")["state"] == "running"
    hub.host.cleat("pull", "private")


def test_roots_own_login_is_known(hub: SecureRegistry, image: str) -> None:
    hub.trust(hub.authority)
    hub.host.run(["skopeo", "login", "--username", USER, "--password-stdin", hub.address], stdin=PASSWORD)
    define(hub.host, image)
    hub.host.run(["skopeo", "logout", hub.address])
    assert hub.host.status("private")["state"] == "running"


def test_the_folder_of_certificates_is_the_definitions(hub: SecureRegistry, image: str) -> None:
    hub.host.write("/etc/cleat/certs/ca.crt", hub.authority)
    hub.host.write(AUTH_FILE, auth_file(USER, PASSWORD), 0o600)
    define(hub.host, image, f'auth_file = "{AUTH_FILE}"', 'cert_dir = "/etc/cleat/certs"')
    assert hub.host.status("private")["state"] == "running"
    hub.host.run(["rm", "-r", "/etc/cleat/certs"])


def test_the_certificate_need_not_be_checked(hub: SecureRegistry, image: str) -> None:
    hub.host.write(AUTH_FILE, auth_file(USER, PASSWORD), 0o600)
    define(hub.host, image, f'auth_file = "{AUTH_FILE}"', "tls_verify = false")
    assert hub.host.status("private")["state"] == "running"


@pytest.mark.parametrize("password", ["wrong", None], ids=["wrong", "none"])
def test_a_login_that_is_none(hub: SecureRegistry, image: str, password: str | None) -> None:
    hub.trust(hub.authority)
    if password is not None:
        hub.host.write(AUTH_FILE, auth_file(USER, password), 0o600)
        define(hub.host, image, f'auth_file = "{AUTH_FILE}"')
    else:
        define(hub.host, image)
    said = failure(hub.host)
    assert "the registry does not let us read the image" in said
    assert f"skopeo login --authfile FILE {SECURE_ADDRESS}" in said


@pytest.mark.parametrize(
    ("text", "reason"),
    [(None, f"pull.auth_file: 127.0.0.1:5443/private:1 cannot be fetched: {AUTH_FILE} is not a file"),
     ('{"auths"', "the logins for registries cannot be read")],
    ids=["missing", "damaged"],
)  # fmt: skip
def test_a_file_of_logins_that_is_none(hub: SecureRegistry, image: str, text: str | None, reason: str) -> None:
    hub.trust(hub.authority)
    if text is not None:
        hub.host.write(AUTH_FILE, text)
    define(hub.host, image, f'auth_file = "{AUTH_FILE}"')
    assert reason in failure(hub.host)


def test_an_unknown_authority(hub: SecureRegistry, image: str) -> None:
    hub.host.write(AUTH_FILE, auth_file(USER, PASSWORD), 0o600)
    define(hub.host, image, f'auth_file = "{AUTH_FILE}"')
    said = failure(hub.host)
    assert "the registry's certificate is not accepted" in said
    assert f"/etc/containers/certs.d/{SECURE_ADDRESS}/" in said
