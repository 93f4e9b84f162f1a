# SPDX-License-Identifier: Apache-2.0
"""Names, values and files that wish harm: refused or handled, never a traceback, nothing outside of what is ours."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.host import samples

if TYPE_CHECKING:
    from tests.host.hosts import Host

NAMES = [
    "..",
    "a b",
    "a\nb",
    "-a",
    "UPPER",
    "ünïcode",
    "%n",
    "a%i",
    "a;reboot",
    "$(reboot)",
    "x" * 65,
    "a@b@c",
    "@",
    "a/../b",
    ".hidden",
    "a\\x2db",
    "\t",
    "a'\"b",
]
NASTY = "%n\n$(touch /pwned)`touch /pwned`;\"'\\ ../../../etc \x1b[31m \u202e ünïcode "


def units(host: Host) -> set[str]:
    lines = host.run(["systemctl", "list-units", "--all", "--plain", "--no-legend"]).stdout.splitlines()
    return {line.split()[0] for line in lines if line.strip()}


def outside(host: Host) -> str:
    """Files where a definition might want to break out to."""
    return host.run("ls -a / /etc /run /var/lib /srv /tmp | grep -v systemd-private").stdout


@pytest.mark.parametrize("name", NAMES)
def test_file_names(clean: Host, name: str) -> None:
    samples.add(clean, good=samples.definition())
    text = samples.definition()
    if "/" not in name:
        put = (
            "import os,sys; open(os.path.join('/etc/cleat/containers', sys.argv[1] + '.toml'), 'w').write(sys.argv[2])"
        )
        clean.run(["python3", "-c", put, name, text])
    before, files = units(clean), outside(clean)
    clean.cleat("reload-agent", check=False)
    assert samples.states(clean) == {"good": "running"}
    extra = {unit for unit in units(clean) - before - {"cleat.slice"} if "good" not in unit}
    assert not {unit for unit in extra if "cleat" in unit}, extra
    assert outside(clean) == files
    for verb in ("start", "status", "inspect", "stop"):
        result = clean.cleat(verb, "--", name, check=False)
        assert result.returncode in (1, 2, 3, 4), result
        assert "Traceback" not in result.stderr
    assert samples.faults(clean) == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\0b", "x" * 100_000, "a/b", "", "web.scope", "*"])
def test_names_on_the_bus(clean: Host, name: str) -> None:
    if "\0" in name:
        return
    manager = ["org.cleat.Agent1", "/org/cleat/Agent1", "org.cleat.Agent1.Manager"]
    for member, signature, rest in (("Start", "s", []), ("Stop", "st", ["0"]), ("Inspect", "sb", ["false"])):
        result = clean.run(["busctl", "call", *manager, member, signature, name, *rest], check=False)
        assert result.returncode != 0
    assert samples.faults(clean) == []


def test_nasty_values_arrive_as_they_are(clean: Host) -> None:
    value = json.dumps(NASTY.replace("%", "%%"))
    head = f"description = {value}\nenvironment = {{ X = {value} }}\nlabels = {{ x = {value} }}\n"
    files = outside(clean)
    samples.add(clean, web=samples.definition(head=head))
    clean.cleat("reload-agent", check=False)
    found = clean.status("web")
    if found["state"] == "running":
        assert f"X={NASTY}" in clean.read(f"/proc/{found['pid']}/environ")
    assert not clean.exists("/pwned")
    assert outside(clean) == files or set(outside(clean).split()) - set(files.split()) <= {"base"}
    text = clean.cleat("status", "web", check=False).stdout
    assert "\x1b" not in text
    assert samples.faults(clean) == []


VALUES = {
    "hostname": ['"a/b"', '"x"', '"' + "h" * 300 + '"', '"a\\nb"'],
    "working_directory": ['"../../.."', '"relative"', '"/' + "d/" * 3000 + '"'],
    "user": ['"root:../etc"', '"99999999999"', '"-1"', '"a:b:c"'],
    "environment": ['{ "A=B" = "c" }', '{ "" = "c" }', '{ A = "\\u0000" }'],
    "after": ['["../x"]', '["' + "a" * 5000 + '"]'],
    "rootfs": ['"/srv/../../etc"', '"/srv/base\\u0000"', '"relative"'],
    "labels": ['{ "x\\ny" = "1" }'],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in VALUES.items() for value in values])
def test_values(clean: Host, key: str, value: str) -> None:
    text = samples.definition(tables='[service]\nrestart = "no"\n')
    if key == "rootfs":
        text = text.split("\n", 1)[1]
    clean.rootfs("base")
    before, files = units(clean), outside(clean)
    samples.add(clean, web=f"{key} = {value}\n{text}")
    clean.cleat("reload-agent", check=False)
    assert {unit for unit in units(clean) - before if "cleat" in unit} <= {
        "cleat-web.scope",
        "cleat@web.service",
        "cleat-after@web.target",
        "cleat.slice",
    }
    assert outside(clean) == files
    assert samples.faults(clean) == []


@pytest.mark.parametrize(
    "target", ["/../../../../tmp/out", "../out", "/proc/self/root/out", "/dev/../../out", "/etc/../../../out"]
)
def test_mount_targets_stay_inside(clean: Host, target: str) -> None:
    files = outside(clean)
    mount = f'[[mount]]\ntype = "tmpfs"\ntarget = "{target}"\n'
    samples.add(clean, web=samples.definition(tables=mount + '[service]\nrestart = "no"\n'))
    clean.cleat("reload-agent", check=False)
    assert set(outside(clean).split()) - set(files.split()) <= {"base"}
    assert samples.faults(clean) == []


def test_links_in_the_root_do_not_lead_out(clean: Host) -> None:
    clean.rootfs("base")
    clean.run(
        "cp -a /srv/base /srv/evil && cd /srv/evil && rm -rf etc tmp && ln -s /etc etc && ln -s ../../../../tmp tmp"
    )
    files = clean.run("ls -la /etc /tmp | grep -v systemd-private").stdout
    samples.add(clean, web=samples.definition(head='user = "root"').replace("/srv/base", "/srv/evil"))
    clean.cleat("reload-agent", check=False)
    clean.run("rm -f /etc/cleat/containers/web.toml")
    clean.reload()
    assert clean.run("ls -la /etc /tmp | grep -v systemd-private").stdout == files
    clean.run(["rm", "-rf", "/srv/evil"])
    assert samples.faults(clean) == []


FILES = {
    "binary": b"\x00\xff\xfe" * 1000,
    "not-utf8": b'rootfs = "\xff\xff"\n',
    "long-line": b'description = "' + b"a" * 900_000 + b'"\n',
    "deep": b"x = " + b"[" * 20_000 + b"]" * 20_000,
    "deep-tables": b"[" + b".".join([b"a"] * 5000) + b"]\n",
    "big-number": b"autostart = " + b"9" * 10_000,
    "empty": b"",
    "bom": b'\xef\xbb\xbfrootfs = "/srv/base"\n',
}


@pytest.mark.parametrize("kind", FILES)
def test_files(clean: Host, kind: str) -> None:
    samples.add(clean, good=samples.definition())
    clean.write("/etc/cleat/containers/bad.toml", FILES[kind])
    clean.cleat("reload-agent", check=False)
    assert samples.states(clean) == {"good": "running"}
    result = clean.cleat("check", check=False)
    assert result.returncode == 1
    assert "bad.toml" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert clean.journal("CLEAT_EVENT=definition-rejected")
    assert samples.faults(clean) == []


def test_what_is_no_plain_file(clean: Host) -> None:
    samples.add(clean, good=samples.definition())
    folder = "/etc/cleat/containers"
    clean.run(
        f"cd {folder} && mkfifo pipe.toml && mkdir folder.toml && ln -s nosuch dangling.toml && ln -s /dev/zero z.toml"
    )
    clean.run(
        f"cd {folder} && ln -s loop.toml loop.toml && ln -s /proc/kmsg kmsg.toml && head -c 10M /dev/zero >huge.toml"
    )
    clean.cleat("reload-agent", check=False)
    assert samples.states(clean) == {"good": "running"}
    assert clean.cleat("check", check=False).returncode == 1
    said = " ".join(e["MESSAGE"] for e in clean.journal("CLEAT_EVENT=definition-rejected"))
    for name in ("pipe", "huge", "z", "kmsg"):
        assert f"/{name}.toml" in said
    assert samples.faults(clean) == []


def test_ten_thousand_files(clean: Host) -> None:
    samples.run(clean, good=samples.definition())
    before = samples.identity(clean, "good")
    write = "for i in $(seq 10000); do echo 'comand = 1' >/etc/cleat/containers/n$i.toml; done"
    clean.run(write, timeout=60)
    samples.reload_with_problems(clean)
    assert samples.identity(clean, "good") == before
    clean.run("find /etc/cleat/containers -name 'n*.toml' -delete")
    clean.reload(timeout=120)
    assert samples.states(clean) == {"good": "running"}
    assert samples.faults(clean) == []


def test_a_container_that_floods(clean: Host) -> None:
    """Output without end and without line ends neither grows the agent nor stops it."""
    samples.run(
        clean,
        loud=samples.definition("exec cat /dev/zero", tables='[log]\ndriver = "none"\n'),
        good=samples.definition(),
    )
    clean.cleat("stop", "loud")
    assert samples.states(clean) == {"loud": "inactive", "good": "running"}
