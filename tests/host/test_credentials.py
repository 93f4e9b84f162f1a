# SPDX-License-Identifier: Apache-2.0
"""[[credential]]: from files, encrypted files and the agent's own, for the container's eyes only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.host.hosts import Host
from tests.host.registry import QUICK

SECRET = "correct-horse-battery"


@pytest.fixture
def secrets(clean: Host) -> Iterator[Host]:
    clean.write("/etc/cleat/secrets/db", SECRET, mode=0o600)
    yield clean
    clean.run("rm -rf /etc/cleat/secrets")


def toml(host: Host, *tables: str, user: str = "") -> str:
    root = host.rootfs("credentials")
    credentials = "".join(f"\n[[credential]]\n{table}\n" for table in tables)
    head = f'rootfs = "{root}"\ncommand = ["/bin/sleep", "1000"]\nuser = "{user}"\n{QUICK}'
    return head + credentials


def inside(host: Host, script: str) -> str:
    return host.cleat("exec", "c", "--", "sh", "-c", script).stdout


def test_the_container_reads_it(secrets: Host) -> None:
    secrets.definition("c", toml(secrets, 'name = "db"\nload = "/etc/cleat/secrets/db"', user="www-data"))
    secrets.reload()
    assert inside(secrets, "cat $CREDENTIALS_DIRECTORY/db") == SECRET
    assert inside(secrets, "stat -c '%u %a' /run/credentials /run/credentials/db").split() == ["33", "500", "33", "400"]
    assert secrets.cleat("exec", "c", "--", "touch", "/run/credentials/x", check=False).returncode != 0
    options = inside(secrets, "grep ' /run/credentials ' /proc/self/mountinfo")
    for option in ("ro", "nosuid", "nodev", "noexec", "tmpfs"):
        assert option in options


def test_nobody_else_does(secrets: Host) -> None:
    secrets.definition("c", toml(secrets, 'name = "db"\nload = "/etc/cleat/secrets/db"'))
    secrets.reload()
    inspected = secrets.cleat("inspect", "c").stdout + secrets.cleat("inspect", "--spec", "c", check=False).stdout
    assert SECRET not in inspected
    found = secrets.run(f"grep -rlaF {SECRET} /run/cleat /var/lib/cleat", check=False)
    assert found.stdout == ""
    assert secrets.run(f"cat /proc/*/cmdline | grep -acF {SECRET} | grep -v ^1", check=False).stdout.strip() in {
        "0",
        "",
    }
    assert SECRET not in secrets.show_journal(since="")
    assert "credentials" not in secrets.run("cat /proc/1/mountinfo").stdout.replace("/run/credentials/", "")


def test_it_is_read_anew_at_each_start(secrets: Host) -> None:
    secrets.definition("c", toml(secrets, 'name = "db"\nload = "/etc/cleat/secrets/db"'))
    secrets.reload()
    secrets.write("/etc/cleat/secrets/db", "another", mode=0o600)
    assert inside(secrets, "cat /run/credentials/db") == SECRET
    secrets.cleat("restart", "c")
    assert inside(secrets, "cat /run/credentials/db") == "another"


def test_encrypted(secrets: Host) -> None:
    path = "/etc/cleat/secrets/db.cred"
    secrets.run(["systemd-creds", "encrypt", "--with-key=host", "--name=db", "/etc/cleat/secrets/db", path])
    secrets.definition("c", toml(secrets, f'name = "db"\nload_encrypted = "{path}"'))
    secrets.reload()
    assert inside(secrets, "cat /run/credentials/db") == SECRET
    secrets.definition("c", toml(secrets, f'name = "other"\nload_encrypted = "{path}"'))
    secrets.reload()
    refused = secrets.cleat("restart", "c", check=False).stderr
    assert "cannot be decrypted" in refused
    assert "credential[0].load_encrypted" in refused


def test_inherited(secrets: Host) -> None:
    dropin = "/run/systemd/system/cleat.service.d/credential.conf"
    secrets.write(dropin, "[Service]\nSetCredential=token:abc\n")
    try:
        secrets.run("systemctl daemon-reload && systemctl restart cleat.service")
        secrets.definition("c", toml(secrets, 'name = "mine"\ninherit = "token"'))
        secrets.reload()
        assert inside(secrets, "cat /run/credentials/mine") == "abc"
    finally:
        secrets.run(f"rm {dropin}; systemctl daemon-reload; systemctl restart cleat.service")
    secrets.definition("c", toml(secrets, 'name = "mine"\ninherit = "token"', user="0"))
    secrets.reload()
    assert "the agent has no credential token" in secrets.cleat("restart", "c", check=False).stderr


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        ("ln -s /etc/shadow $F", "it is a symbolic link"),
        ("mkfifo $F", "not a regular file"),
        ("echo x >$F; chmod 0666 $F", "can be written by others"),
        ("echo x >$F; chown 33 $F", "it belongs to user 33"),
        ("true", "does not exist"),
        ("truncate -s 2M $F", "the credentials are too large"),
    ],
)
def test_what_is_not_taken(secrets: Host, prepare: str, reason: str) -> None:
    secrets.run(f"F=/etc/cleat/secrets/odd; rm -f $F; {prepare}")
    secrets.definition("c", toml(secrets, 'name = "odd"\nload = "/etc/cleat/secrets/odd"'))
    said = secrets.cleat("reload-agent", check=False).stderr + secrets.cleat("start", "c", check=False).stderr
    assert reason in said
    assert "credential[0]" in said
