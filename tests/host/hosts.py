# SPDX-License-Identifier: Apache-2.0
"""One way to drive a booted host from a test, whether it is a private nspawn host or a virtual machine.

`Host` is what tests use. How a command gets inside is the machine's business (`Machine.command`):
`tests.host.nspawn` and `tests.vm.qemu` each have one. Standard library and pytest only.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tests.host.machine import HostError, tail
from tests.host.nspawn import CHECKOUT, HERE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pytest

Entry = dict[str, Any]
_WAY_IN_FAILED = (1, 255)
"""What nsenter(1) and ssh(1) return when they cannot run the command; it may be the command's own code, too."""
PACKAGE_IN_HOST = "/var/tmp/cleat.deb"
DEFINITIONS = "/etc/cleat/containers"


class Machine(Protocol):
    """Something booted that commands can be run in."""

    @property
    def name(self) -> str: ...

    @property
    def console(self) -> Path: ...

    def command(self, argv: list[str], *, fork: bool = True) -> list[str]: ...

    def lost(self) -> str: ...


@dataclass(frozen=True)
class Result:
    """What a command printed and how it ended (128 + N after signal N, as in a shell)."""

    argv: tuple[str, ...]
    stdout: str
    stderr: str
    returncode: int


class CommandError(HostError):
    """A command in a host failed or took too long."""

    def __init__(self, host: str, result: Result, why: str) -> None:
        said = f"--- stdout ---\n{result.stdout}--- stderr ---\n{result.stderr}"
        super().__init__(f"host {host}: {shlex.join(result.argv)}: {why}\n{said}")
        self.result = result


@dataclass
class Host:
    """A booted host. Timeouts are in seconds of real hardware; `patience` stretches them for emulation."""

    machine: Machine
    patience: float = 1.0
    mark: str = ""
    """Journal cursor after which `journal` and `wait_journal` look by default; `clean` sets it."""
    agent_fds: dict[str, list[str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.machine.name

    # Commands and files

    def run(
        self,
        argv: Sequence[str] | str,
        *,
        timeout: float = 30.0,
        check: bool = True,
        stdin: str | bytes = b"",
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Runs a command as root (a string goes through sh -c). Raises CommandError if it fails."""
        limit = timeout * self.patience
        words = ["sh", "-c", argv] if isinstance(argv, str) else list(argv)
        data = stdin.encode() if isinstance(stdin, str) else stdin
        command = self._command(words, limit, env)
        try:
            done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=limit + 30)
        except subprocess.TimeoutExpired as error:
            self.require(shlex.join(words))
            raise HostError(f"host {self.name}: {shlex.join(words)} did not end in {limit:.0f} s") from error
        if done.returncode in _WAY_IN_FAILED:
            self.require(shlex.join(words))
        code = done.returncode if done.returncode >= 0 else 128 - done.returncode
        stdout, stderr = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        result = Result(tuple(words), stdout, stderr, code)
        if code in (124, 137) and check:
            raise CommandError(self.name, result, f"was killed or not done after {limit:.0f} s")
        if code and check:
            raise CommandError(self.name, result, f"exit code {code}")
        return result

    @contextlib.contextmanager
    def start(
        self, argv: Sequence[str] | str, *, timeout: float = 60.0, env: Mapping[str, str] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Runs a command beside the test, with pipes for stdin and stdout (stderr is the test's own)."""
        words = ["sh", "-c", argv] if isinstance(argv, str) else list(argv)
        command = self._command(words, timeout * self.patience, env)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            try:
                yield process
            finally:
                process.terminate()

    def require(self, what: str = "") -> None:
        """Raises HostError with the end of its console if the host is lost; `what` was being done to it."""
        why = self.machine.lost()
        if why:
            console = tail(self.machine.console, 120)
            raise HostError(f"host {self.name} is lost: {why}; meanwhile: {what}\n--- console ---\n{console}")

    def _command(self, words: list[str], limit: float, env: Mapping[str, str] | None) -> list[str]:
        extra = ["env", *(f"{key}={value}" for key, value in env.items())] if env else []
        return self.machine.command([*extra, "timeout", "-k", "5", f"{limit:.1f}", *words], fork=False)

    def write(self, path: str, text: str | bytes, mode: int = 0o644) -> None:
        """Puts a file in place by rename, with its parent folders."""
        put = (
            'mkdir -p "$(dirname "$1")" && umask 077 && cat >"$1.part" && chmod "$2" "$1.part" && mv -T "$1.part" "$1"'
        )
        self.run(["sh", "-c", put, "sh", path, f"{mode:o}"], stdin=text)

    def read(self, path: str) -> str:
        return self.run(["cat", "--", path]).stdout

    def exists(self, path: str) -> bool:
        return self.run(["test", "-e", path], check=False).returncode == 0

    # The journal

    def cursor(self) -> str:
        """Where the journal ends now: events after this moment come after it."""
        self.run(["journalctl", "--sync"])
        lines = self.run(["journalctl", "-n", "1", "-q", "-o", "json", "--output-fields=MESSAGE"]).stdout
        return str(json.loads(lines)["__CURSOR"]) if lines.strip() else ""

    def journal(self, *match: str, since: str | None = None) -> list[Entry]:
        """The entries that match (`FIELD=value`) after a cursor, by default the test's mark."""
        self.run(["journalctl", "--sync"])
        show = ["journalctl", "-q", "-a", "-o", "json", *self._after(since), *match]
        found = self.run(show, check=False).stdout
        return [json.loads(line) for line in found.splitlines()]

    def wait_journal(
        self,
        *match: str,
        timeout: float = 20.0,
        since: str | None = None,
        where: Callable[[Entry], bool] = lambda _: True,
    ) -> Entry:
        """The first entry that matches after a cursor (by default the test's mark), waited for."""
        limit = timeout * self.patience
        follow = ["journalctl", "-q", "-a", "-f", "-n", "all", "-o", "json", *self._after(since), *match]
        with self.start(follow, timeout=timeout + 5) as process:
            for line in self._lines(process, time.monotonic() + limit):
                entry: Entry = json.loads(line)
                if where(entry):
                    return entry
        has = self.show_journal(lines=60, since=since)
        raise HostError(f"host {self.name}: no journal entry {shlex.join(match)} in {limit:.0f} s; it has\n{has}")

    def wait_event(self, name: str, event: str, *, timeout: float = 20.0, since: str | None = None) -> Entry:
        """The agent's journal entry that says that `event` happened to the container `name`."""
        return self.wait_journal(f"CLEAT_CONTAINER={name}", f"CLEAT_EVENT={event}", timeout=timeout, since=since)

    def show_journal(self, *, lines: int = 400, since: str | None = None) -> str:
        """The journal as text, for failure messages."""
        show = ["journalctl", "-q", "-a", "--no-pager", "-n", str(lines), *self._after(since)]
        return self.run(show, check=False).stdout

    def _after(self, since: str | None) -> list[str]:
        cursor = self.mark if since is None else since
        return [f"--after-cursor={cursor}"] if cursor else []

    @staticmethod
    def _lines(process: subprocess.Popen[bytes], deadline: float) -> Iterator[bytes]:
        assert process.stdout is not None
        rest = b""
        while (left := deadline - time.monotonic()) > 0 and select.select([process.stdout], [], [], left)[0]:
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines

    # cleat

    def cleat(self, *args: str, timeout: float = 60.0, check: bool = True, stdin: str | bytes = b"") -> Result:
        return self.run(["cleat", *args], timeout=timeout, check=check, stdin=stdin)

    def definition(self, name: str, toml: str) -> str:
        """Writes /etc/cleat/containers/NAME.toml and returns its path; the agent is not told."""
        path = f"{DEFINITIONS}/{name}.toml"
        self.write(path, toml)
        return path

    def remove_definition(self, name: str) -> None:
        self.run(["rm", "-rf", f"{DEFINITIONS}/{name}.toml", f"{DEFINITIONS}/{name}.toml.d"])

    def reload(self, *, timeout: float = 60.0) -> None:
        """The agent reads the definitions again and has acted on them when this returns."""
        self.cleat("reload-agent", timeout=timeout)

    def status(self, name: str | None = None) -> Any:
        """`cleat status --json`: the list of all containers, or the one object of `name`."""
        result = self.cleat("status", "--json", *([name] if name else []), check=False)
        if result.returncode not in (0, 3):
            raise CommandError(self.name, result, f"exit code {result.returncode}")
        objects = json.loads(result.stdout)
        return objects if name is None else objects[0]

    def rootfs(self, name: str, *programs: str) -> str:
        """Makes /srv/NAME, a small root folder out of busybox, once, and returns its path.

        `programs` are programs of the host, by absolute path, that it gets with their libraries.
        """
        path = f"/srv/{name}"
        script = (HERE / "rootfs").read_text(encoding="utf-8")
        self.run(["sh", "-s", "--", path, *programs], stdin=script, timeout=60)
        return path

    # The package

    def install(self, package: Path) -> None:
        """Installs or upgrades cleat from a DEB of the machine's."""
        self.write(PACKAGE_IN_HOST, package.read_bytes())
        # Not apt-get: everything that the package depends on is in the tree, and there is no network.
        self.run(["dpkg", "--install", PACKAGE_IN_HOST], timeout=120, env={"DEBIAN_FRONTEND": "noninteractive"})

    def unit(self, name: str, *properties: str) -> dict[str, str]:
        """Properties of a unit, by `systemctl show`."""
        wanted = [f"--property={','.join(properties)}"] if properties else []
        lines = self.run(["systemctl", "show", *wanted, "--", name]).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


def build_package() -> Path:
    """The DEB of this checkout."""
    done = subprocess.run([CHECKOUT / "packaging/build-deb"], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise HostError("packaging/build-deb failed (see its messages above)")
    return Path(done.stdout.decode().splitlines()[-1])


@contextlib.contextmanager
def kept_clean(host: Host) -> Iterator[Host]:
    """A test's stay on a host: afterwards every container is gone, and nothing of any is left."""
    host.mark = host.cursor()
    before = _settle(host, "list")
    yield host
    surplus = audit(host)
    _clear(host)
    left = _settle(host, "wait", before)
    assert not surplus, "containers had more than their spec says:\n" + "\n".join(surplus)
    assert not left["leftovers"], "left behind on the host:\n" + "\n".join(left["leftovers"])
    _check_agent_fds(host, left["agent"], left["fds"])


def audit(host: Host) -> list[str]:
    """What the running containers have beyond their specs: fds, capabilities, variables, mounts."""
    script = (HERE / "audit.py").read_text(encoding="utf-8")
    found: list[str] = json.loads(host.run(["python3", "-"], stdin=script, timeout=60).stdout)
    return found


def _clear(host: Host) -> None:
    """Takes all containers away, and has a running agent for the next test, whatever this one did to it."""
    clear = f"""
        systemctl start cleat.service
        cleat stop --all --time 0  # payloads need not end nicely here
        rm -rf {DEFINITIONS}/* /run/cleat/containers/*
        cleat reload-agent
        systemctl stop 'cleat@*.service' 'cleat-*.scope'
        systemctl reset-failed
    """
    host.run(clear, timeout=120, check=False)


def _settle(host: Host, *argv: str | Entry) -> Entry:
    words = [word if isinstance(word, str) else json.dumps(word) for word in argv]
    script = (HERE / "settle.py").read_text(encoding="utf-8")
    found: Entry = json.loads(host.run(["python3", "-", *words], stdin=script, timeout=60).stdout)
    return found


def _check_agent_fds(host: Host, agent: str, fds: list[str]) -> None:
    """The agent holds no more fds than after its first test."""
    first = host.agent_fds.setdefault(agent, fds)
    now, before = "\n".join(fds), "\n".join(first)
    assert len(fds) <= len(first), f"the agent ({agent}) leaks fds, it holds\n{now}\nbefore it was\n{before}"


def add_journal(item: pytest.Item, report: pytest.TestReport, fixtures: Sequence[str]) -> None:
    """Puts the host's journal since the test's start and the end of its console into the report of a failure."""
    if not report.failed:
        return
    for name in fixtures:
        host = getattr(item, "funcargs", {}).get(name)
        if isinstance(host, Host):
            report.sections.append((f"console of host {host.name}", tail(host.machine.console)))
            with contextlib.suppress(HostError):
                report.sections.append((f"journal of host {host.name}", host.show_journal()))
            return
