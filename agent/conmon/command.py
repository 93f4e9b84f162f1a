# SPDX-License-Identifier: Apache-2.0
"""conmon's command line and environment from values; pure (conmon(8), conmon's src/cli.c)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

FIRST_LISTEN_FD = 3


class LogOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`driver` is conmon's word: journald, k8s-file, none or passthrough. `path` is for k8s-file; 0 = no size limit."""

    driver: str = "journald"
    path: str = ""
    size_max: int = 0
    tag: str = ""
    labels: Mapping[str, str] = {}


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """What every call of conmon needs. `session` is the container's id, or an exec session's own.

    `bundle` holds all files of the session: pidfile, conmon.pid, oci-log, attach, ctl, exit/, persist/.
    `runtime_args` go before the runtime's subcommand, `runtime_opts` behind it.
    """

    conmon: str
    runtime: str
    container_id: str
    session: str
    name: str
    bundle: str
    log: LogOptions = LogOptions()
    runtime_args: tuple[str, ...] = ()
    runtime_opts: tuple[str, ...] = ()
    oci_log: bool = True
    preserve_fds: int = 0
    terminal: bool = False
    stdin: bool = False
    leave_stdin_open: bool = False
    log_level: str = "error"

    @property
    def pidfile(self) -> str:
        return f"{self.bundle}/pidfile"

    @property
    def conmon_pidfile(self) -> str:
        return f"{self.bundle}/conmon.pid"

    @property
    def exit_dir(self) -> str:
        return f"{self.bundle}/exit"

    @property
    def persist_dir(self) -> str:
        return f"{self.bundle}/persist"

    @property
    def oci_log_path(self) -> str:
        return f"{self.bundle}/oci-log"


class CreateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What only a container's conmon needs. `systemd_cgroup` lets the runtime make its own scope (-s)."""

    systemd_cgroup: bool = False
    no_pivot: bool = False
    exit_command: tuple[str, ...] = ()
    restore: str = ""
    restore_opts: tuple[str, ...] = ()


def _shared(command: Command) -> list[str]:
    argv = [
        command.conmon,
        "--api-version",
        "-c",
        command.container_id,
        "-u",
        command.session,
        "-n",
        command.name,
        "-r",
        command.runtime,
        "-b",
        command.bundle,
        "-p",
        command.pidfile,
        "--conmon-pidfile",
        command.conmon_pidfile,
        "--exit-dir",
        command.exit_dir,
        "--persist-dir",
        command.persist_dir,
        "--full-attach",
        "--log-level",
        command.log_level,
        "--syslog",
    ]
    argv += _log(command.log)
    if command.terminal:
        argv.append("-t")
    elif command.stdin:
        argv.append("-i")
        if command.leave_stdin_open:
            argv.append("--leave-stdin-open")
    runtime_args = list(command.runtime_args)
    if command.oci_log:
        runtime_args += ["--log-format=json", f"--log={command.oci_log_path}"]
    # The form with "=" keeps values that start with a dash from being read as conmon's own options.
    argv += [f"--runtime-arg={arg}" for arg in runtime_args]
    opts = list(command.runtime_opts)
    if command.preserve_fds:
        opts += ["--preserve-fds", str(command.preserve_fds)]
    argv += [f"--runtime-opt={opt}" for opt in opts]
    return argv


def _log(log: LogOptions) -> list[str]:
    """conmon refuses tags and labels where no driver of the call is journald."""
    argv = ["-l", f"k8s-file:{log.path}" if log.driver == "k8s-file" else log.driver]
    if log.size_max > 0:
        argv += ["--log-size-max", str(log.size_max)]
    if log.driver == "journald":
        if log.tag:
            argv += ["--log-tag", log.tag]
        for key, value in log.labels.items():
            argv += ["--log-label", f"{key}={value}"]
    return argv


def create_arguments(command: Command, options: CreateOptions) -> list[str]:
    """argv for creating (or, with `restore`, restoring) a container."""
    argv = _shared(command)
    if options.systemd_cgroup:
        argv.append("-s")
    if options.no_pivot:
        argv.append("--no-pivot")
    if options.exit_command:
        first, *rest = options.exit_command
        argv += ["--exit-command", first]
        argv += [f"--exit-command-arg={arg}" for arg in rest]
    if options.restore:
        argv += ["--restore", options.restore]
        argv += [f"--runtime-opt={opt}" for opt in options.restore_opts]
    return argv


def exec_arguments(command: Command, process_spec: str, *, attach: bool = True) -> list[str]:
    """argv for one exec session; `process_spec` is the file with its OCI process object.

    Without `attach` the command begins at the first byte on the start pipe.
    """
    attached = ["--exec-attach"] if attach else []
    return [*_shared(command), "-e", *attached, "--exec-process-spec", process_spec]


def environment(base: Mapping[str, str], *, preserved: int, attach: bool = False) -> dict[str, str]:
    """conmon's environment: passed sockets are fds 3 and up, the pipes come right behind them.

    NOTIFY_SOCKET and LISTEN_* never go in: crun would wait for readiness itself, and count the sockets twice.
    """
    env = {key: value for key, value in base.items() if key != "NOTIFY_SOCKET" and not key.startswith("LISTEN_")}
    first = FIRST_LISTEN_FD + preserved
    env["_OCI_SYNCPIPE"] = str(first)
    env["_OCI_STARTPIPE"] = str(first + 1)
    if attach:
        env["_OCI_ATTACHPIPE"] = str(first + 2)
    return env
