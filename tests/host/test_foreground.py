# SPDX-License-Identifier: Apache-2.0
"""`cleat run FILE`: in the foreground, without the agent, under the caller's own unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.host.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.hosts import Host

FOLDER = "/run/foreground"
LEFT = (
    "find /run/cleat/foreground/b /run/cleat/foreground/records /var/lib/cleat/overlay-foreground -mindepth 1;"
    "find /run/cleat/foreground/runtime -mindepth 2 -maxdepth 2 ! -name .cache;"
    "systemctl list-units --no-legend --plain 'cleat:*.scope'"
)
GONE = "until ! systemctl is-active --quiet 'cleat:{name}.scope' 'cleat:guard:{name}.scope'; do :; done"


@pytest.fixture
def alone(clean: Host) -> Iterator[Host]:
    """A host whose agent does not run."""
    clean.rootfs("busybox")
    clean.run("systemctl stop cleat")
    yield clean
    clean.run(f"rm -rf {FOLDER}; systemctl reset-failed; systemctl start cleat", check=False)


def shell(host: Host, name: str, script: str, more: str = "") -> str:
    """A definition of one busybox shell."""
    path = f"{FOLDER}/{name}.toml"
    text = f'rootfs = "/srv/busybox"\ncommand = ["/bin/sh", "-c", {script!r}]\n{more}'
    host.write(path, text)
    return path


def left(host: Host) -> str:
    return host.run(LEFT, check=False).stdout


@pytest.mark.parametrize("code", [0, 1, 7, 126, 127, 255])
def test_exit_code_and_output_are_passed_on(alone: Host, code: int) -> None:
    path = shell(alone, "job", f"echo out; echo err >&2; exit {code}")
    done = alone.run(["cleat", "run", path], check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "out\n", "err\n")
    assert left(alone) == ""


@pytest.mark.parametrize(("command", "code"), [("/bin/nowhere", 127), ("/etc/passwd", 126)])
def test_what_cannot_be_started(alone: Host, command: str, code: int) -> None:
    path = f"{FOLDER}/job.toml"
    alone.write(path, f'rootfs = "/srv/busybox"\ncommand = ["{command}"]\n')
    done = alone.run(["cleat", "run", path], check=False)
    assert done.returncode == code
    assert "cleat: " in done.stderr
    assert "Traceback" not in done.stderr
    assert left(alone) == ""


def test_a_wrong_definition(alone: Host) -> None:
    path = f"{FOLDER}/job.toml"
    alone.write(path, 'rootfs = "/srv/busybox"\ncomand = ["/bin/true"]\n')
    done = alone.run(["cleat", "run", path], check=False)
    assert done.returncode == 125
    assert f"{path}:2:1: comand" in done.stderr


def test_stdin(alone: Host) -> None:
    path = shell(alone, "job", "cat; echo end", "stdin = true\n")
    assert alone.run(["cleat", "run", path], stdin="through\n" * 3).stdout == "through\n" * 3 + "end\n"
    path = shell(alone, "job", "cat; echo end")
    assert alone.run(["cleat", "run", path], stdin="not read\n").stdout == "end\n"


def test_terminal(alone: Host) -> None:
    path = shell(alone, "tty", "tty; stty size; read line; echo got $line; exit 5", "terminal = true\nstdin = true\n")
    script = f"stty rows 31 cols 77; cleat run {path}; echo code $?"
    done = alone.run(["python3", "-c", _IN_A_TERMINAL, script, "typed"])
    words = done.stdout.split()
    assert "/dev/console" in words or "/dev/pts/0" in words
    assert "31 77" in done.stdout
    assert "got typed" in done.stdout
    assert "code 5" in done.stdout
    assert left(alone) == ""


_IN_A_TERMINAL = """
import os, pty, sys
pid, terminal = pty.fork()
if not pid:
    os.execvp("sh", ["sh", "-c", sys.argv[1]])
seen = b""
while True:
    try:
        data = os.read(terminal, 4096)
    except OSError:
        break
    seen += data
    if b"31 77" in seen and sys.argv[2]:
        os.write(terminal, sys.argv[2].encode() + b"\\r")
        sys.argv[2] = ""
os.waitpid(pid, 0)
sys.stdout.buffer.write(seen)
"""


def service(host: Host, name: str, path: str, *properties: str) -> None:
    options = [f"--property={item}" for item in ("Type=notify", "NotifyAccess=all", *properties)]
    host.run(["systemd-run", "--quiet", f"--unit={name}", *options, "cleat", "run", path])


SERVER = "trap 'echo bye; exit 3' TERM; echo serving; while :; do sleep 1000 & wait; done"


def test_a_unit_of_the_callers(alone: Host) -> None:
    service(alone, "mine", shell(alone, "server", SERVER))
    unit = alone.unit("mine.service", "MainPID", "ActiveState")
    assert unit["ActiveState"] == "active"
    assert alone.read(f"/proc/{unit['MainPID']}/comm") == "conmon\n"
    assert "BindsTo=mine.service" in alone.run("systemctl show -p BindsTo 'cleat:server.scope'").stdout
    alone.run(["systemctl", "stop", "mine"])
    unit = alone.unit("mine.service", "ExecMainStatus", "Result")
    assert unit == {"ExecMainStatus": "3", "Result": "exit-code"}
    alone.run(GONE.format(name="server"))
    assert left(alone) == ""
    said = alone.run(["journalctl", "-q", "-o", "cat", "-u", "mine"]).stdout
    assert "serving\n" in said
    assert "bye\n" in said
    assert "left something behind" not in said


def test_kill_9_leaves_nothing(alone: Host) -> None:
    """Neither of `cleat run` alone, nor of all in the caller's unit."""
    for whom in ("process", "unit"):
        service(alone, f"killed-{whom}", shell(alone, "server", SERVER))
        if whom == "process":
            group = alone.unit(f"killed-{whom}.service", "ControlGroup")["ControlGroup"]
            path = alone.run("grep -h ' cgroup2 ' /proc/mounts | cut -d' ' -f2 | head -n1").stdout.strip()
            (pid,) = alone.read(f"{path}{group}/cgroup.procs").split()
            alone.run(["kill", "-9", pid])
        else:
            alone.run(["systemctl", "kill", "--signal=KILL", f"killed-{whom}.service"])
        alone.run(GONE.format(name="server"))
        alone.run(f"until ! systemctl is-active --quiet killed-{whom}.service; do :; done")
        assert left(alone) == ""
        assert alone.unit(f"killed-{whom}.service", "ActiveState")["ActiveState"] == "failed"


def test_what_a_reboot_left_is_removed(alone: Host) -> None:
    """Bundles go with /run; what was written to the root is on the disk."""
    root = f"/var/lib/cleat/overlay-foreground/{'0' * 64}"
    alone.run(["mkdir", "-p", f"{root}/upper/etc"])
    alone.run(["cleat", "run", shell(alone, "short", "exit 0")])
    assert not alone.exists(root)


def test_one_of_a_name_at_a_time(alone: Host) -> None:
    path = shell(alone, "server", SERVER)
    service(alone, "mine", path)
    done = alone.run(["cleat", "run", path], check=False)
    assert done.returncode == 125
    assert "runs in the foreground already" in done.stderr
    assert alone.unit("mine.service", "ActiveState")["ActiveState"] == "active"
    alone.run("systemctl stop mine", check=False)


@pytest.mark.parametrize("mode", ["container", "conmon", "ignore"])
def test_readiness_of_the_unit(alone: Host, mode: str) -> None:
    payload = Service(alone, "ready").define()
    text = payload.text(f'[service]\nnotify = "{mode}"\n')
    path = f"{FOLDER}/ready.toml"
    alone.write(path, text)
    alone.run(["rm", "-rf", f"/etc/cleat/containers/{payload.name}.toml"])
    options = ["--property=Type=notify", "--property=NotifyAccess=all", "--no-block"]
    alone.run(["systemd-run", "--quiet", "--unit=mine", *options, "cleat", "run", path])
    alone.wait_journal("_SYSTEMD_UNIT=mine.service", where=lambda entry: "ready started" in entry["MESSAGE"])
    alone.run(f"until test -S {payload.folder}/control; do :; done")
    if mode == "container":
        payload.notify("STATUS=on its way")
        unit = alone.unit("mine.service", "ActiveState", "StatusText")
        assert unit == {"ActiveState": "activating", "StatusText": "on its way"}
        payload.notify("READY=1\\nSTATUS=serving")
        alone.run("until systemctl is-active --quiet mine; do :; done")
        assert alone.unit("mine.service", "StatusText")["StatusText"] == "serving"
    else:
        wanted = "active" if mode == "conmon" else "activating"
        assert alone.unit("mine.service", "ActiveState")["ActiveState"] == wanted
    alone.run("systemctl stop mine; rm -rf /run/payloads", check=False)
    alone.run(GONE.format(name="ready"))
    assert left(alone) == ""


def test_sockets_of_the_unit_are_passed_on(alone: Host) -> None:
    payload = Service(alone, "given").define()
    path = f"{FOLDER}/given.toml"
    alone.write(path, payload.text('[[socket]]\nname = "mine"\nlisten_stream = "127.0.0.1:8092"\n'))
    alone.run(["rm", f"/etc/cleat/containers/{payload.name}.toml"])
    unit = f"[Service]\nType=notify\nNotifyAccess=all\nExecStart=cleat run {path}\n"
    alone.write("/run/systemd/system/given.service", unit)
    addresses = "ListenStream=127.0.0.1:8091\nListenStream=127.0.0.1:8092\n"
    alone.write("/run/systemd/system/given.socket", f"[Socket]\n{addresses}FileDescriptorName=unit\n")
    try:
        alone.run("systemctl daemon-reload; systemctl start given.socket given.service")
        alone.run(f"until test -S {payload.folder}/control; do :; done")
        (found,) = payload.tell("fds")
        # Its own [[socket]] first, filled with the unit's that fits, then the rest.
        assert found["environment"]["LISTEN_FDNAMES"] == "mine:unit"
        for port in ("8091", "8092"):
            said = alone.run(["socat", "-t5", "-", f"TCP4:127.0.0.1:{port}"], stdin="hello\n").stdout
            assert said == "hello given\n"
    finally:
        alone.run("systemctl stop given.service given.socket; rm /run/systemd/system/given.*", check=False)
        alone.run("systemctl daemon-reload; rm -rf /run/payloads")
    alone.run(GONE.format(name="given"))
    assert left(alone) == ""
