# SPDX-License-Identifier: Apache-2.0
"""An OCI runtime on this host: where it is, what it can do, and its commands (crun(1), runc(8)).

`create`, `restore` and `exec` are conmon's to run, with `global_args`; all the others are run here. The
environment is made from nothing: with NOTIFY_SOCKET crun's start would wait for the payload, LISTEN_FDS
would pass on foreign fds.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.errors import CleatError, RuntimeFailed, Unsupported
from agent.oci import failures
from agent.oci.failures import error_from_text, read_oci_log
from agent.oci.features import Features, checkpoint_reason, judge_version, parse_version
from agent.spawn import child, tool
from agent.spawn.spawner import HERE, Spawner

__all__ = ["CheckpointOptions", "Features", "Runtime", "RuntimeState", "error_from_text", "read_oci_log"]


_CHECKPOINT_TIMEOUT = 600.0
_VERSION = re.compile(r"^(?P<name>\S+) version (?P<text>(?P<numbers>\d+(\.\d+)*)\S*)", re.MULTILINE)
_COMMIT = re.compile(r"^commit: (\S+)$", re.MULTILINE)


class RuntimeState(msgspec.Struct, frozen=True):
    """What a runtime reports (runtime.md, State); `status` is created, running, paused or stopped."""

    id: str
    status: str
    pid: int = 0
    bundle: str = ""


class CheckpointOptions(msgspec.Struct, frozen=True, kw_only=True):
    image_path: str
    work_path: str
    leave_running: bool = False
    tcp_established: bool = False
    file_locks: bool = False
    network_lock: str = ""
    """How criu keeps packets out meanwhile: nftables; "" = as it likes, which is iptables."""

    def arguments(self) -> list[str]:
        """As both runtimes spell them; a restore takes the same but for `leave_running`."""
        flags = ("leave_running", "tcp_established", "file_locks")
        chosen = [f"--{flag.replace('_', '-')}" for flag in flags if getattr(self, flag)]
        lock = ["--network-lock", self.network_lock] if self.network_lock else []
        return ["--image-path", self.image_path, "--work-path", self.work_path, *chosen, *lock]


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """One runtime binary with its state folder. `args` are a definition's own global arguments."""

    name: str
    path: str
    root: str
    args: tuple[str, ...] = ()
    runtime_dir: str = ""
    spawner: Spawner = HERE

    @classmethod
    def find(
        cls,
        name: str,
        candidates: Sequence[str | Path],
        search_path: str,
        *,
        root: str,
        args: Sequence[str] = (),
    ) -> Runtime:
        """The first candidate that is an executable file, else `name` from `search_path` (like $PATH).

        A name with a slash is a path itself. Raises Unsupported naming every place that was tried.
        """
        if "/" in name:
            tried = [name]
        else:
            folders = [folder for folder in search_path.split(":") if folder.startswith("/")]
            tried = [*map(str, candidates), *(f"{folder}/{name}" for folder in folders)]
        found = next((path for path in tried if _is_executable(path)), None)
        if found is None:
            raise Unsupported(
                f"the container runtime {name} is not installed",
                key="runtime.name",
                why="no executable file at " + ", ".join(dict.fromkeys(tried)),
                hint=f"install {Path(name).name}, or name another runtime",
            )
        run_dir = os.environ.get("XDG_RUNTIME_DIR", "")
        return cls(name=Path(name).name, path=found, root=root, args=tuple(args), runtime_dir=run_dir)

    @property
    def global_args(self) -> tuple[str, ...]:
        """Before the command, for conmon's --runtime-arg too."""
        return ("--root", self.root, *self.args)

    def with_args(self, args: Sequence[str]) -> Runtime:
        """The same runtime with a definition's own global arguments."""
        return msgspec.structs.replace(self, args=tuple(args))

    def environment(self) -> dict[str, str]:
        base = child.base_environment()
        return {**base, "XDG_RUNTIME_DIR": self.runtime_dir} if self.runtime_dir else base

    def argv(self, command: str, *arguments: str) -> list[str]:
        return [self.path, *self.global_args, command, *arguments]

    def start_argv(self, container_id: str) -> list[str]:
        return self.argv("start", container_id)

    def state_argv(self, container_id: str) -> list[str]:
        return self.argv("state", container_id)

    def kill_argv(self, container_id: str, signum: int, *, all_processes: bool = False) -> list[str]:
        return self.argv("kill", *(["--all"] if all_processes else []), container_id, str(signum))

    def delete_argv(self, container_id: str, *, force: bool = False) -> list[str]:
        return self.argv("delete", *(["--force"] if force else []), container_id)

    def checkpoint_argv(self, container_id: str, options: CheckpointOptions) -> list[str]:
        return self.argv("checkpoint", *options.arguments(), container_id)

    async def start(self, container_id: str, *, container: str = "", within_sec: float = 30.0) -> None:
        """Let the created process run. That its file cannot be executed may show only in its output."""
        await self._run(self.start_argv(container_id), container, "cannot start the container", within_sec)

    async def state(self, container_id: str, *, container: str = "") -> RuntimeState | None:
        """What the runtime knows; None when it knows no such container."""
        result = await self._command(self.state_argv(container_id))
        if result.returncode == 0:
            return _decoded(result.stdout, container)
        error = _failure(result, container, "cannot read the container's state")
        if error.code == "invalid-state":
            return None
        raise error

    async def kill(self, container_id: str, signum: int, *, all_processes: bool = False, container: str = "") -> None:
        """Raises InvalidState when the container has ended."""
        argv = self.kill_argv(container_id, signum, all_processes=all_processes)
        await self._run(argv, container, f"cannot send signal {signum}")

    async def delete(self, container_id: str, *, force: bool = False, container: str = "") -> None:
        """Remove the runtime's record and cgroup; with `force` kill first, and nothing there is no error."""
        argv = self.delete_argv(container_id, force=force)
        await self._run(argv, container, "cannot delete the container", 30.0)

    async def pause(self, container_id: str, *, container: str = "") -> None:
        await self._run(self.argv("pause", container_id), container, "cannot pause the container")

    async def resume(self, container_id: str, *, container: str = "") -> None:
        await self._run(self.argv("resume", container_id), container, "cannot resume the container")

    async def checkpoint(self, container_id: str, options: CheckpointOptions, *, container: str = "") -> None:
        argv = self.checkpoint_argv(container_id, options)
        await self._run(argv, container, "cannot checkpoint the container", _CHECKPOINT_TIMEOUT)

    async def ps(self, container_id: str, *, container: str = "") -> list[int]:
        """The pids of all processes in the container, as the host counts them."""
        argv = self.argv("ps", "--format", "json", container_id)
        result = await self._command(argv)
        if result.returncode:
            raise _failure(result, container, "cannot list the container's processes")
        try:
            return msgspec.json.decode(result.stdout or b"[]", type=list[int])
        except msgspec.DecodeError as e:
            raise RuntimeFailed(f"{self.name} ps printed no list", container=container, why=str(e)) from e

    async def probe(self) -> Features:
        """Look at the installed runtime. Raises Unsupported when it is too old to be safe, or is none."""
        version = await self._ask("--version")
        features = await self._ask("features")
        usage = await self._ask("--help")
        criu = await self._ask("checkpoint", "--help")
        text = version.stdout.decode(errors="replace")
        match, commit = _VERSION.search(text), _COMMIT.search(text)
        if match is None:
            raise Unsupported(
                f"{self.path} is no OCI runtime", why=version.text.partition("\n")[0][:200], hint="see runtime.name"
            )
        has_criu = _is_installed("criu")
        reason = checkpoint_reason(features.stdout, knows_command=criu.returncode == 0, has_criu=has_criu)
        can_lock = b"--network-lock" in criu.stdout + criu.stderr
        help_text = usage.stdout + usage.stderr
        return Features(
            path=self.path,
            kind=match["name"],
            version=match["text"],
            log_json=b"--log-format" in help_text,
            no_cgroups=b"--cgroup-manager" in help_text,
            checkpoint=not reason,
            checkpoint_reason=reason,
            network_lock="nftables" if can_lock and not _is_installed("iptables-restore") else "",
            warnings=judge_version(match["name"], parse_version(match["numbers"]), commit[1] if commit else ""),
        )

    async def package(self) -> str:
        """The package that owns the binary, by dpkg-query(1) or rpm(8); "unknown" if neither says so."""
        for argv in _owner_queries(self.path):
            try:
                result = await tool.run(argv, limit=4096)
            except CleatError:
                continue
            if result.returncode == 0:
                words = result.stdout.decode(errors="replace").split()
                return words[0].removesuffix(":") if words else "unknown"
        return "unknown"

    async def _ask(self, *arguments: str) -> tool.Result:
        # Without the executor: what runs can be taken over when that is away.
        return await tool.run([self.path, *arguments], env=self.environment(), limit=1 << 18)

    async def _command(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 10.0,  # noqa: ASYNC109
        is_terse: bool = False,
    ) -> tool.Result:
        return await tool.run(
            argv,
            env=self.environment(),
            timeout=timeout,
            is_terse=is_terse,
            is_unwritable=True,
            spawner=self.spawner,
        )

    async def _run(
        self,
        argv: Sequence[str],
        container: str,
        what: str,
        timeout: float = 10.0,  # noqa: ASYNC109
    ) -> tool.Result:
        result = await self._command(argv, timeout=timeout, is_terse=True)
        if result.returncode:
            raise _failure(result, container, what)
        return result


def _is_executable(path: str) -> bool:
    try:
        is_file = stat.S_ISREG(Path(path).stat().st_mode)
    except OSError:
        return False
    return is_file and os.access(path, os.X_OK)


def _owner_queries(path: str) -> tuple[tuple[str, ...], ...]:
    real = os.path.realpath(path)
    return ("dpkg", "-S", real), ("rpm", "-q", "-f", real)


def _failure(result: tool.Result, container: str, what: str) -> CleatError:
    return failures.error_from_text(result.text, container, what=what, exit_code=result.returncode)


def _decoded(data: bytes, container: str) -> RuntimeState:
    try:
        return msgspec.json.decode(data, type=RuntimeState)
    except msgspec.DecodeError as e:
        raise RuntimeFailed("the runtime printed no state", container=container, why=str(e)) from e


def _is_installed(tool: str) -> bool:
    folders = child.base_environment()["PATH"].split(":")
    return any(_is_executable(f"{folder}/{tool}") for folder in folders)
