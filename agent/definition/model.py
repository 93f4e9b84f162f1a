# SPDX-License-Identifier: Apache-2.0
"""The typed definition of one container: every key with its type and default (definition/help.py has its line of help).

Annotated kinds say how a TOML value is spelled, definition/kinds.py what that means: a time span "1min 30s" is
seconds here, a size "512M" bytes, a signal "SIGTERM" its number. Names are systemd's directives in snake case where
systemd has one (systemd.service(5), systemd.socket(5), systemd.kill(5)), then podman's, then the OCI spec's.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta


def kind(name: str) -> Meta:
    """How the value is spelled: a row of definition/kinds.py."""
    return Meta(extra={"kind": name})


TimeSpan = Annotated[float, kind("time_span")]
Size = Annotated[int, kind("size")]
Mode = Annotated[int, kind("mode")]
Signal = Annotated[int, kind("signal")]
ExitStatuses = tuple[Annotated[int, kind("exit_status")], ...]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Text = Annotated[str, kind("text")]
HostPath = Annotated[str, kind("host_path")]
ContainerPath = Annotated[str, kind("container_path")]
Name = Annotated[str, kind("name")]
ListenAddressText = Annotated[str, kind("listen_address")]
Capability = Annotated[str, kind("capability")]
NamespaceMode = Annotated[str, kind("namespace")]
IdMap = Annotated[str, kind("id_map")]
UserName = Annotated[str, kind("user")]
TextMap = Annotated[dict[str, str], kind("text_map")]


class Table(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of every TOML table: immutable, built by keyword, compared by value."""


class ServiceType(StrEnum):
    SIMPLE = "simple"
    ONESHOT = "oneshot"


class Restart(StrEnum):
    """systemd.service(5), Restart=."""

    NO = "no"
    ON_SUCCESS = "on-success"
    ON_FAILURE = "on-failure"
    ON_ABNORMAL = "on-abnormal"
    ON_ABORT = "on-abort"
    ON_WATCHDOG = "on-watchdog"
    ALWAYS = "always"


class Notify(StrEnum):
    """Who says that the container is ready: podman-run(1), --sdnotify."""

    CONMON = "conmon"
    CONTAINER = "container"
    HEALTHY = "healthy"
    IGNORE = "ignore"


class Service(Table, frozen=True, kw_only=True):
    type: ServiceType = ServiceType.SIMPLE
    restart: Restart = Restart.ON_FAILURE
    restart_sec: TimeSpan = 0.1
    restart_max_delay_sec: TimeSpan = 300.0
    restart_steps: Count = 8
    start_limit_burst: Count = 0
    start_limit_interval_sec: TimeSpan = 0.0
    timeout_start_sec: TimeSpan = 90.0
    timeout_stop_sec: TimeSpan = 10.0
    runtime_max_sec: TimeSpan = math.inf
    kill_signal: Signal = 15
    success_exit_status: ExitStatuses = (143,)
    restart_prevent_exit_status: ExitStatuses = ()
    restart_force_exit_status: ExitStatuses = ()
    reload_signal: Signal = 0
    reload_command: tuple[Text, ...] = ()
    notify: Notify = Notify.CONMON
    watchdog_sec: TimeSpan = 0.0
    file_descriptor_store_max: Annotated[int, Meta(ge=0, le=4096)] = 0


class BindIPv6Only(StrEnum):
    DEFAULT = "default"
    BOTH = "both"
    IPV6_ONLY = "ipv6-only"


class Socket(Table, frozen=True, kw_only=True):
    """systemd.socket(5). Exactly one listen_* key. `name` is the fd name in LISTEN_FDNAMES."""

    name: Annotated[str, kind("fd_name")] = ""
    listen_stream: ListenAddressText = ""
    listen_datagram: ListenAddressText = ""
    listen_sequential_packet: ListenAddressText = ""
    listen_fifo: Annotated[str, kind("fifo")] = ""
    socket_mode: Mode = 0o666
    directory_mode: Mode = 0o755
    socket_user: UserName = ""
    socket_group: UserName = ""
    backlog: Count = 4096
    accept_from: Annotated[str, kind("ip_prefixes")] = ""
    on_demand: bool = False
    stop_idle_sec: TimeSpan = math.inf
    bind_ipv6_only: BindIPv6Only = BindIPv6Only.DEFAULT
    bind_to_device: Annotated[str, kind("interface")] = ""
    free_bind: bool = False
    transparent: bool = False
    reuse_port: bool = False
    keep_alive: bool = False
    no_delay: bool = False
    defer_accept_sec: TimeSpan = 0.0
    receive_buffer: Size = 0
    send_buffer: Size = 0
    pipe_size: Size = 0
    ip_tos: Annotated[int, Meta(ge=0, le=255)] = 0
    ip_ttl: Annotated[int, Meta(ge=0, le=255)] = 0
    mark: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0
    priority: Count = 0
    pass_credentials: bool = False
    remove_on_stop: bool = False
    trigger_limit_interval_sec: TimeSpan = 2.0
    trigger_limit_burst: Count = 20


class HealthAction(StrEnum):
    NONE = "none"
    RESTART = "restart"
    STOP = "stop"
    KILL = "kill"


class Health(Table, frozen=True, kw_only=True):
    command: tuple[Text, ...] = ()
    interval_sec: TimeSpan = 30.0
    timeout_sec: TimeSpan = 30.0
    retries: Annotated[int, Meta(ge=1, le=1000)] = 3
    start_period_sec: TimeSpan = 0.0
    on_failure: HealthAction = HealthAction.NONE
    startup_command: tuple[Text, ...] = ()
    startup_interval_sec: TimeSpan = 1.0
    startup_retries: Count = 0
    startup_timeout_sec: TimeSpan = 30.0


class Network(Table, frozen=True, kw_only=True):
    """`mode`: host, none, private, bridge, container:NAME or ns:/path."""

    mode: Annotated[str, kind("network_mode")] = "host"
    networks: tuple[Annotated[str, kind("word")], ...] = ()
    publish: tuple[Annotated[str, kind("publish")], ...] = ()
    dns: tuple[Annotated[str, kind("ip")], ...] = ()
    hosts: Annotated[dict[str, str], kind("hosts")] = {}


class MountType(StrEnum):
    BIND = "bind"
    VOLUME = "volume"
    TMPFS = "tmpfs"
    MQUEUE = "mqueue"
    DEVPTS = "devpts"


class Mount(Table, frozen=True, kw_only=True):
    type: MountType = MountType.BIND
    source: str = ""
    target: ContainerPath = ""
    read_only: bool = False
    options: tuple[Annotated[str, kind("mount_option")], ...] = ()
    size: Size = 0
    mode: Mode = 0o1777


class Security(Table, frozen=True, kw_only=True):
    privileged: bool = False
    no_new_privileges: bool = True
    read_only: bool = False
    read_only_tmpfs: bool = True
    capabilities_add: tuple[Capability, ...] = ()
    capabilities_drop: tuple[Capability, ...] = ()
    ambient_capabilities: tuple[Capability, ...] = ()
    seccomp_profile: Annotated[str, kind("seccomp_profile")] = "default"
    apparmor_profile: str = ""
    selinux_type: str = ""
    selinux_level: str = ""
    user_namespace: Annotated[str, kind("user_namespace")] = "host"
    uid_map: tuple[IdMap, ...] = ()
    gid_map: tuple[IdMap, ...] = ()
    ipc: Annotated[str, kind("ipc")] = "private"
    pid: NamespaceMode = "private"
    uts: NamespaceMode = "private"
    devices: tuple[Annotated[str, kind("device")], ...] = ()
    masked_paths: tuple[ContainerPath, ...] = ()
    unmasked_paths: tuple[Annotated[str, kind("unmasked_path")], ...] = ()
    read_only_paths: tuple[ContainerPath, ...] = ()
    sysctls: Annotated[dict[str, str], kind("sysctls")] = {}
    umask: Mode = 0o022


class LogDriver(StrEnum):
    JOURNALD = "journald"
    K8S_FILE = "k8s-file"
    NONE = "none"
    PASSTHROUGH = "passthrough"


class Log(Table, frozen=True, kw_only=True):
    driver: LogDriver = LogDriver.JOURNALD
    path: HostPath = ""
    size_max: Size = 0
    tag: str = ""
    labels: Annotated[dict[str, str], kind("log_labels")] = {}


class CgroupMode(StrEnum):
    """podman-run(1), --cgroups; `split` puts conmon and payload below one scope."""

    SPLIT = "split"
    ENABLED = "enabled"
    NO_CONMON = "no-conmon"
    DISABLED = "disabled"


class CgroupManager(StrEnum):
    SYSTEMD = "systemd"
    CGROUPFS = "cgroupfs"


class Cgroup(Table, frozen=True, kw_only=True):
    mode: CgroupMode = CgroupMode.SPLIT
    manager: CgroupManager = CgroupManager.SYSTEMD
    slice: Annotated[str, kind("slice")] = "cleat.slice"


class Runtime(Table, frozen=True, kw_only=True):
    name: Annotated[str, kind("runtime")] = "crun"
    args: tuple[str, ...] = ()
    no_pivot: bool = False


class Credential(Table, frozen=True, kw_only=True):
    """Exactly one of load (a file), load_encrypted (systemd-creds(1)), inherit (one of the agent's own)."""

    name: Annotated[str, kind("credential")] = ""
    load: HostPath = ""
    load_encrypted: HostPath = ""
    inherit: Annotated[str, kind("credential")] = ""


class UpdateMode(StrEnum):
    OFF = "off"
    CHECK = "check"
    DOWNLOAD = "download"
    APPLY = "apply"


class Update(Table, frozen=True, kw_only=True):
    mode: UpdateMode = UpdateMode.OFF
    schedule: Annotated[str, kind("calendar")] = "daily"
    soak_sec: TimeSpan = 60.0


class PullPolicy(StrEnum):
    MISSING = "missing"
    ALWAYS = "always"
    NEWER = "newer"
    NEVER = "never"


class Pull(Table, frozen=True, kw_only=True):
    """How the image is fetched: skopeo-copy(1)."""

    policy: PullPolicy = PullPolicy.MISSING
    retry: Annotated[int, Meta(ge=0, le=100)] = 3
    retry_delay_sec: TimeSpan = 1.0
    timeout_sec: TimeSpan = 1800.0
    auth_file: HostPath = ""
    tls_verify: bool = True
    cert_dir: HostPath = ""


class Resources(Table, frozen=True, kw_only=True):
    """systemd.resource-control(5) keys as given (normalised text by key), and the process limits of systemd.exec(5).

    `properties` maps the snake-case key to its checked text; definition/resources.py turns it into scope properties.
    `limits` maps "nofile" etc. to (soft, hard).
    """

    properties: dict[str, str] = {}
    limits: dict[str, tuple[int, int]] = {}
    oom_score_adjust: int | None = None


class Container(Table, frozen=True, kw_only=True):
    """One definition after drop-ins, templates and specifiers."""

    name: str
    source: str = ""
    description: str = ""
    image: Annotated[str, kind("image")] = ""
    rootfs: HostPath = ""
    rootfs_writable: bool = False
    bundle: HostPath = ""
    entrypoint: tuple[Text, ...] | None = None
    command: tuple[Text, ...] = ()
    user: Annotated[str, kind("user_group")] = ""
    groups: tuple[UserName, ...] = ()
    working_directory: ContainerPath = ""
    hostname: Annotated[str, kind("hostname")] = ""
    timezone: Annotated[str, kind("timezone")] = ""
    environment: Annotated[dict[str, str], kind("environment")] = {}
    environment_files: tuple[Annotated[str, kind("environment_file")], ...] = ()
    stdin: bool = False
    terminal: bool = False
    init: bool = False
    stop_on_agent_exit: bool = False
    labels: TextMap = {}
    annotations: TextMap = {}
    autostart: bool = True
    after: tuple[Name, ...] = ()
    requires: tuple[Name, ...] = ()
    wants: tuple[Name, ...] = ()
    restart_with: tuple[Name, ...] = ()
    conflicts: tuple[Name, ...] = ()
    service: Service = Service()
    socket: tuple[Socket, ...] = ()
    resources: Resources = Resources()
    health: Health = Health()
    network: Network = Network()
    mount: tuple[Mount, ...] = ()
    security: Security = Security()
    log: Log = Log()
    cgroup: Cgroup = Cgroup()
    runtime: Runtime = Runtime()
    credential: tuple[Credential, ...] = ()
    update: Update = Update()
    pull: Pull = Pull()


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """A checked definition and the table it came from.

    `raw` is the merged table after specifiers (what is stored beside a running container, so that it can be read
    again after an agent restart); `digest` is the sha256 of its canonical JSON and of its environment files.
    """

    container: Container
    raw: dict[str, Any]
    digest: str

    @property
    def name(self) -> str:
        return self.container.name


class Diagnostic(msgspec.Struct, frozen=True, kw_only=True):
    """One thing wrong (or, with `warning`, doubtful) in one file. Line and column count from 1; 0 = not known."""

    file: str
    line: int = 0
    column: int = 0
    key: str = ""
    reason: str = ""
    hint: str = ""
    container: str = ""
    warning: bool = False

    def __str__(self) -> str:
        place = ":".join([self.file, *(str(n) for n in (self.line, self.column) if n)])
        text = ": ".join(part for part in (place, self.key, self.reason) if part)
        return f"{text} ({self.hint})" if self.hint else text


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """What could be read of a definition that is refused, and the paths of the keys that could not."""

    definition: Definition
    faults: tuple[tuple[str | int, ...], ...] = ()


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """All that the definition folders hold: good definitions by name, diagnostics, templates, masked names."""

    definitions: dict[str, Definition]
    refused: tuple[Refused, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    templates: tuple[str, ...] = ()
    masked: tuple[str, ...] = ()

    @property
    def rejected(self) -> frozenset[str]:
        """Names whose files were refused; what runs under them stays as it is."""
        named = frozenset(d.container for d in self.diagnostics if d.container and not d.warning)
        return named - self.definitions.keys()
