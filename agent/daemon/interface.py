# SPDX-License-Identifier: Apache-2.0
"""The members of org.cleat.Agent1 as tables, row by row; docs/man/org.cleat.Agent1.5.md says the same in words."""

from __future__ import annotations

from agent import __version__
from agent.daemon.bus_object import Access, Method, Property
from agent.daemon.operations import Operations

NAME = "org.cleat.Agent1"
PATH = "/org/cleat/Agent1"
CONTAINERS = PATH + "/container/"
MANAGER = NAME + ".Manager"
CONTAINER = NAME + ".Container"

_NAME = (("name", "s"),)
_JSON = (("json", "s"),)
_TIMED = (("name", "s"), ("timeout_usec", "t"))
_OPTIONS = (("name", "s"), ("options_json", "s"))


def manager_methods(do: Operations) -> tuple[Method, ...]:
    """The methods of the manager object."""
    read, inspect, manage, run, reload_ = (
        Access.READ,
        Access.INSPECT,
        Access.MANAGE,
        Access.EXEC,
        Access.RELOAD,
    )
    return (
        Method(
            "GetStatus",
            (("names", "as"),),
            _JSON,
            read,
            "Status objects of the named, or of all containers.",
            do.status,
        ),
        Method(
            "Start",
            _NAME,
            (),
            manage,
            "Start a container and what it needs; returns when it is ready.",
            do.start,
        ),
        Method("Stop", _TIMED, (), manage, "Stop a container; UINT64_MAX stands for its own timeout.", do.stop),
        Method("Restart", _NAME, (), manage, "Stop, then start.", do.restart),
        Method(
            "Reload",
            _NAME,
            (),
            manage,
            "Ask the payload to reload: reload_command or reload_signal.",
            do.reload,
        ),
        Method("Pause", _NAME, (), manage, "Freeze all processes of a container.", do.pause),
        Method("Resume", _NAME, (), manage, "Let a paused container go on.", do.resume),
        Method(
            "Kill",
            (("name", "s"), ("signal", "i"), ("all", "b")),
            (),
            manage,
            "Send a signal to the first process, or to all.",
            do.kill,
        ),
        Method("Wait", _NAME, (("exit_code", "i"),), read, "Wait for the end; returns the exit code.", do.wait),
        Method(
            "Inspect",
            (("name", "s"), ("spec", "b")),
            _JSON,
            inspect,
            "All that is known of a container, or its runtime spec: that of its run, or of the next one.",
            do.inspect,
        ),
        Method(
            "Plan",
            (),
            _JSON,
            inspect,
            "What ReloadDefinitions would do, and what is wrong with the definitions.",
            do.plan,
        ),
        Method(
            "ReloadDefinitions",
            (),
            _JSON,
            reload_,
            "Read the definitions and carry out the plan.",
            do.reload_definitions,
        ),
        Method(
            "Info",
            (),
            _JSON,
            read,
            "Versions and features of agent, conmon, runtimes, systemd and kernel.",
            do.info,
        ),
        Method(
            "Stats",
            (("names", "as"),),
            _JSON,
            read,
            "Figures of processor, memory, tasks and I/O.",
            do.stats,
        ),
        Method("Top", _NAME, _JSON, inspect, "The processes inside a container.", do.top),
        Method(
            "Exec",
            _OPTIONS,
            (("session", "s"), ("attach_socket", "s"), ("control", "s")),
            run,
            "Prepare a command in a container; it waits for ExecStart.",
            do.exec_create,
        ),
        Method("ExecStart", (("session", "s"),), (), run, "Let the command of a session begin.", do.exec_start),
        Method(
            "ExecWait",
            (("session", "s"),),
            (("exit_code", "i"),),
            run,
            "Wait for a session's end and remove it.",
            do.exec_wait,
        ),
        Method(
            "ExecKill",
            (("session", "s"), ("signal", "i")),
            (),
            run,
            "Signal the command of a session.",
            do.exec_kill,
        ),
        Method(
            "Attach",
            _NAME,
            (("attach_socket", "s"), ("control", "s"), ("terminal", "b")),
            run,
            "Where conmon's attach socket and control fifo are.",
            do.attach,
        ),
        Method(
            "Checkpoint",
            _OPTIONS,
            _JSON,
            manage,
            "Store a running container's state with criu.",
            do.checkpoint,
        ),
        Method("Restore", _OPTIONS, _JSON, manage, "Let a checkpointed container go on.", do.restore),
        Method("Pull", _NAME, _JSON, manage, "Fetch the image of a definition.", do.pull),
        Method("Images", (), _JSON, read, "The images in the store.", do.images),
        Method("Prune", (("dry_run", "b"),), _JSON, manage, "Remove what no definition needs.", do.prune),
        Method("Subscribe", (), (), read, "Ask for signals; until the caller leaves the bus.", do.subscribe),
        Method("Unsubscribe", (), (), read, "Ask for no more signals.", do.unsubscribe),
    )


def _prop(name: str, signature: str, text: str, field: str = "") -> Property:
    attribute = field or "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")
    return Property(name, signature, text, lambda status: getattr(status, attribute))


PROPERTIES: tuple[Property, ...] = (
    _prop("Name", "s", "The container's name."),
    _prop("Id", "s", "The 64 hexadecimal digits of the run of the moment, or of the last one."),
    _prop("State", "s", "inactive, pulling, starting, running, paused, stopping, backoff, exited or failed."),
    _prop("Ready", "b", "True from readiness to the end."),
    _prop("Pid", "u", "The first process, 0 when there is none."),
    _prop("ConmonPid", "u", "conmon's pid, 0 when there is none."),
    Property(
        "ExitCode",
        "i",
        "0-255, 128+n for signal n; -1 before the first end.",
        lambda s: -1 if s.exit_code is None else s.exit_code,
    ),
    _prop("OomKilled", "b", "Whether the kernel ended the last run for lack of memory."),
    Property("StartedAt", "t", "Microseconds since 1970, 0 = never.", lambda s: int(s.started_at * 1e6)),
    Property("FinishedAt", "t", "Microseconds since 1970, 0 = never.", lambda s: int(s.finished_at * 1e6)),
    _prop("Restarts", "u", "How often the agent restarted it by itself."),
    _prop("StatusText", "s", "The payload's own STATUS=."),
    _prop("Health", "s", "starting, healthy, unhealthy or empty."),
    _prop("Unit", "s", "The scope."),
    _prop("Definition", "s", "The file it is defined in."),
    _prop("Image", "s", "The image it is made from, if any."),
    _prop("Error", "s", "Why it failed, if it did."),
)


def container_methods(do: Operations) -> tuple[Method, ...]:
    """The methods of a container object; the name comes from the path."""
    manage = Access.MANAGE
    return (
        Method("Start", (), (), manage, "Start it; returns when it is ready.", do.start),
        Method(
            "Stop",
            (("timeout_usec", "t"),),
            (),
            manage,
            "Stop it; UINT64_MAX stands for its own timeout.",
            do.stop,
        ),
        Method("Restart", (), (), manage, "Stop, then start.", do.restart),
        Method("Reload", (), (), manage, "Ask the payload to reload.", do.reload),
        Method("Pause", (), (), manage, "Freeze it.", do.pause),
        Method("Resume", (), (), manage, "Let it go on.", do.resume),
        Method("Kill", (("signal", "i"), ("all", "b")), (), manage, "Send a signal.", do.kill),
        Method("Wait", (), (("exit_code", "i"),), Access.READ, "Wait for the end.", do.wait),
        Method("Inspect", (), _JSON, Access.INSPECT, "All that is known of it.", do.inspect),
    )


MANAGER_PROPERTIES: tuple[Property, ...] = (
    Property("Version", "s", "The agent's version.", lambda _: __version__, emits_change=False),
)
