# SPDX-License-Identifier: Apache-2.0
"""Checks of strings by what they name: paths, hosts, users, images, capabilities; pure.

Each returns the text as it is used from here on and raises InvalidValue. Control characters are refused wherever the
text may reach a file of lines, a unit name, the journal or a mount option.
"""

from __future__ import annotations

import ipaddress
import re

from agent.definition import addresses, values
from agent.definition.values import InvalidValue, nearest_hint, shown

LINE_MAX = 4096
TEXT_MAX = 128 * 1024 - 1  # the kernel's MAX_ARG_STRLEN, with the NUL that ends it
PATH_MAX = 4095

CAPABILITIES = (
    "CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_AUDIT_WRITE", "CAP_BLOCK_SUSPEND", "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID",
    "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_KILL", "CAP_LEASE", "CAP_LINUX_IMMUTABLE", "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE", "CAP_MKNOD", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_RAW",
    "CAP_PERFMON", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYSLOG", "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT", "CAP_SYS_CHROOT", "CAP_SYS_MODULE", "CAP_SYS_NICE", "CAP_SYS_PACCT", "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_WAKE_ALARM",
)  # fmt: skip
"""capabilities(7)."""

MOUNT_OPTIONS = frozenset((
    "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync", "async", "dirsync", "atime", "noatime",
    "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime", "bind", "rbind", "private",
    "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable", "rro", "rrw", "rnosuid",
    "rnodev", "rnoexec", "rsuid", "rdev", "rexec", "ratime", "rnoatime", "rrelatime", "rstrictatime", "idmap",
    "ridmap", "tmpcopyup", "copy", "nocopy", "U", "z", "Z", "nosymfollow", "symfollow", "silent", "loud",
    "lazytime", "nolazytime", "newinstance",
))  # fmt: skip
"""mount(8), the OCI runtime spec's and podman's own; what has a "=" is the file system's and passes."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CONTROL_BUT_LAYOUT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def _refuse(found: re.Match[str], text: str) -> InvalidValue:
    names = {"\0": "a NUL character", "\n": "a line break", "\r": "a carriage return", "\t": "a tab"}
    name = names.get(found[0], f"the control character U+{ord(found[0]):04X}")
    return InvalidValue(f"{shown(text)} contains {name}", "remove it")


def line(text: str, limit: int = LINE_MAX) -> str:
    """One line without control characters."""
    if found := _CONTROL.search(text):
        raise _refuse(found, text)
    if len(text) > limit:
        raise InvalidValue(f"{shown(text)} has {len(text)} characters", f"at most {limit} are allowed")
    return text


def text(value: str, limit: int = TEXT_MAX) -> str:
    """Text that may have several lines: an argument, the value of a variable."""
    if found := _CONTROL_BUT_LAYOUT.search(value):
        raise _refuse(found, value)
    if len(value.encode()) > limit:
        raise InvalidValue(f"{shown(value)} has {len(value.encode())} bytes", f"at most {limit} are allowed")
    return value


def _matching(value: str, expression: re.Pattern[str], what: str, hint: str) -> str:
    if value and expression.fullmatch(value) is None:
        raise InvalidValue(f"{shown(value)} is not {what}", hint)
    return value


# Paths


def path(value: str) -> str:
    """An absolute path without "..": normalised, so that equal places are equal strings. "" is "none"."""
    line(value)
    if not value:
        return value
    if not value.startswith("/"):
        raise InvalidValue(
            f"{shown(value)} is not an absolute path", f'write "/{value.removeprefix("./")}", or the like'
        )
    parts = [part for part in value.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise InvalidValue(f'{shown(value)} contains ".."', "write the path that is meant")
    if len(value.encode()) > PATH_MAX or any(len(part.encode()) > 255 for part in parts):
        raise InvalidValue(f"{shown(value)} is too long for a path", f"at most {PATH_MAX} bytes, 255 in each part")
    return "/" + "/".join(parts)


def unmasked_path(value: str) -> str:
    return value if value == "ALL" else path(value)


def environment_file(value: str) -> str:
    """A path, absolute or relative to the defining file; "-" in front when it may be missing."""
    line(value)
    name = value.removeprefix("-")
    if not name or name.endswith("/") or ".." in name.split("/"):
        raise InvalidValue(f"{shown(value)} is not the path of a file", 'write it without ".."')
    return value


_SECCOMP = ("default", "unconfined")


def seccomp_profile(value: str) -> str:
    if value.startswith("/"):
        return path(value)
    if value not in _SECCOMP:
        raise InvalidValue(f"{shown(value)} is no seccomp profile", 'write "default", "unconfined" or an absolute path')
    return value


_DEVICE_ACCESS = re.compile(r"r?w?m?")


def device(value: str) -> str:
    """HOST[:CONTAINER[:ACCESS]] of podman-run(1), --device."""
    line(value)
    host, _, rest = value.partition(":")
    inside, _, access = rest.partition(":")
    if inside and not inside.startswith("/") and not access:
        inside, access = "", inside
    if not host.startswith("/dev/") or not _DEVICE_ACCESS.fullmatch(access):
        raise InvalidValue(
            f"{shown(value)} is not a device",
            'write "/dev/fuse", "/dev/sda:/dev/xvda" or "/dev/sda:/dev/xvda:rwm"',
        )
    path(host)
    path(inside)
    return value


def mount_option(value: str) -> str:
    line(value)
    if "," in value or not value:
        raise InvalidValue(f"{shown(value)} is not one mount option", 'write a list, ["nosuid", "nodev"]')
    if "=" not in value and value not in MOUNT_OPTIONS:
        raise InvalidValue(f"{shown(value)} is not a mount option", nearest_hint(value, MOUNT_OPTIONS))
    return value


# Names

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
_FD_NAME = re.compile(r"[!-9;-~]{1,255}")
_INTERFACE = re.compile(r"[!-.0-9;-~]{1,15}")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?|[0-9]{1,10}")
_HOST_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_TIMEZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,3}")
_SLICE = re.compile(r"-\.slice|[A-Za-z0-9:_.\\]+(-[A-Za-z0-9:_.\\]+)*\.slice")
_CREDENTIAL = re.compile(r"[!-.0-9;-~]{1,255}")
_CALENDAR = re.compile(r"[A-Za-z0-9 *,./:~_+-]{1,200}")


def word(value: str) -> str:
    return _matching(value, _WORD, "a name", "letters, digits, '_', '.', '-'; the first a letter or digit")


def fd_name(value: str) -> str:
    """sd_listen_fds_with_names(3): no control characters, no colon."""
    return _matching(value, _FD_NAME, "a name for a socket", "printable ASCII without spaces and ':', up to 255")


def interface(value: str) -> str:
    return _matching(value, _INTERFACE, "a network interface", "at most 15 characters without spaces, '/' and ':'")


def user(value: str) -> str:
    """A name or number of a user or group."""
    if value.isascii() and value.isdigit() and int(value[:11]) > 2**32 - 2:
        raise InvalidValue(f"{shown(value)} is not a user or group", "numbers end at 4294967294")
    return _matching(value, _USER, "the name or number of a user or group", 'write for example "nginx" or "1000"')


def user_group(value: str) -> str:
    name, colon, group = value.partition(":")
    if colon and not (name and group):
        raise InvalidValue(f"{shown(value)} is not a user", 'write for example "nginx" or "nginx:www"')
    user(name)
    user(group)
    return value


def hostname(value: str) -> str:
    """hostname(7): at most 64 characters, labels of letters, digits and inner hyphens."""
    if value and (len(value) > 64 or not all(_HOST_LABEL.fullmatch(part) for part in value.split("."))):
        raise InvalidValue(f"{shown(value)} is not a host name", "letters, digits and '-' in labels of 63, 64 in all")
    return value


def timezone(value: str) -> str:
    return _matching(value, _TIMEZONE, "a time zone", 'write for example "Europe/Berlin", or "local"')


def slice_name(value: str) -> str:
    if len(value) > 255 or not value:
        raise InvalidValue(f"{shown(value)} is not a slice", 'write for example "machine.slice"')
    return _matching(value, _SLICE, "a slice", 'the name ends in ".slice", and "-" stands for a parent slice')


def runtime(value: str) -> str:
    """The name of a runtime, or the path of its binary."""
    if value.startswith("/"):
        return path(value)
    if not value:
        raise InvalidValue("no runtime is named", 'write for example "crun"')
    return word(value)


def credential(value: str) -> str:
    if value in {".", ".."}:
        raise InvalidValue(f"{shown(value)} is not the name of a credential", "it becomes a file's name")
    return _matching(value, _CREDENTIAL, "the name of a credential", "printable ASCII without spaces, '/' and ':'")


def calendar(value: str) -> str:
    """The form only: systemd.time(7) has the grammar, systemd-analyze(1) checks it."""
    if not value:
        raise InvalidValue("no schedule is given", 'write for example "daily"')
    return _matching(value, _CALENDAR, "a calendar expression", 'write for example "daily" or "Mon *-*-* 04:00"')


# Images

_TRANSPORTS = ("docker", "oci", "oci-archive", "docker-archive", "dir")
_REFERENCE = re.compile(
    r"(?:(?:localhost|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|[A-Za-z0-9-]+(?=:[0-9]+/)|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?/)?"
    r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha(?:256:[0-9a-f]{64}|512:[0-9a-f]{128}))?"
)
_TRANSPORT = re.compile(r"(docker|oci|oci-archive|docker-archive|dir|containers-storage|docker-daemon|sif|atomic):(.*)")


def image(value: str) -> str:
    """A registry's reference, or a local transport of containers-transports(5) with an absolute path."""
    line(value, 1024)
    found = _TRANSPORT.fullmatch(value)
    if found and found[1] not in _TRANSPORTS:
        raise InvalidValue(f"{shown(value)}: {found[1]} is not supported", f"use one of {', '.join(_TRANSPORTS)}")
    if found and found[1] != "docker":
        if not found[2].startswith("/"):
            raise InvalidValue(f"{shown(value)} has no absolute path", f'write "{found[1]}:/PATH"')
        path(found[2])
        return value
    reference = found[2].removeprefix("//") if found else value
    hint = "repositories are written in small letters" if reference != reference.lower() else ""
    if not _REFERENCE.fullmatch(reference):
        raise InvalidValue(
            f"{shown(value)} is not the reference of an image",
            hint or 'write for example "docker.io/library/nginx:1.27"',
        )
    return value


# Networks and namespaces

_NETWORK_MODES = ("host", "none", "private", "bridge")


def network_mode(value: str) -> str:
    kind, colon, rest = value.partition(":")
    if colon and kind == "container":
        values.check_name(rest)
    elif colon and kind == "ns":
        if not path(rest):
            raise InvalidValue(f"{shown(value)} names no namespace", 'write "ns:/run/netns/NAME"')
    elif value not in _NETWORK_MODES:
        hint = nearest_hint(value, _NETWORK_MODES)
        raise InvalidValue(
            f"{shown(value)} is not a network mode",
            hint or "modes are host, none, private, bridge, container:NAME, ns:/PATH",
        )
    return value


def _one_of(value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        hint = nearest_hint(value, choices) or "write " + " or ".join(f'"{choice}"' for choice in choices)
        raise InvalidValue(f"{shown(value)} is not known here", hint)
    return value


def _shared_or(value: str, choices: tuple[str, ...]) -> str:
    """One of `choices`, or another container's namespace: container:NAME."""
    kind, colon, rest = value.partition(":")
    if colon and kind == "container":
        values.check_name(rest)
        return value
    return _one_of(value, choices)


def namespace(value: str) -> str:
    return _shared_or(value, ("private", "host"))


def ipc(value: str) -> str:
    return _shared_or(value, ("private", "host", "none"))


def user_namespace(value: str) -> str:
    return _one_of(value, ("host", "auto", "map"))


_PREFIX_WORDS = frozenset({"any", "localhost", "link-local", "multicast"})


def ip_prefixes(value: str) -> str:
    """systemd.resource-control(5), IPAddressAllow=: addresses with an optional prefix length, or symbolic names."""
    for part in line(value).split():
        if part in _PREFIX_WORDS:
            continue
        try:
            ipaddress.ip_network(part, strict=False)
        except ValueError:
            raise InvalidValue(
                f"{shown(part)} is not an IP address or prefix",
                'write for example "10.0.0.0/8", or any, localhost, link-local, multicast',
            ) from None
    return " ".join(value.split())


# Security


def capability(value: str) -> str:
    """The full name: "net_admin" becomes "CAP_NET_ADMIN"; "ALL" is all of them."""
    upper = value.upper()
    name = upper if upper == "ALL" or upper.startswith("CAP_") else f"CAP_{upper}"
    if name != "ALL" and name not in CAPABILITIES:
        raise InvalidValue(f"{shown(value)} is not a capability", nearest_hint(name, CAPABILITIES))
    return name


_ID_MAP = re.compile(r"([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})")


def id_map(value: str) -> str:
    """user_namespaces(7): CONTAINER:HOST:COUNT."""
    found = _ID_MAP.fullmatch(value)
    inside, outside, count = (int(part) for part in found.groups()) if found else (0, 0, 0)
    if count < 1 or inside + count > 2**32 - 1 or outside + count > 2**32 - 1:
        raise InvalidValue(f"{shown(value)} is not a mapping of ids", 'write CONTAINER:HOST:COUNT, "0:100000:65536"')
    return value


# Values of tables with free keys

_VARIABLE = re.compile(r"[!-<>-~]{1,256}")
_JOURNAL_FIELD = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_SYSCTL = re.compile(r"[a-z0-9_]+(\.[A-Za-z0-9_-]+)+")


def variable(key: str, value: str | int) -> str:
    """An environment variable. HOME becomes a line of a passwd file in some runtimes and must be one line."""
    if not _VARIABLE.fullmatch(key):
        raise InvalidValue(f"{shown(key)} is not the name of a variable", "printable ASCII without spaces and '='")
    return line(str(value)) if key == "HOME" else text(str(value))


def label(key: str, value: str | int) -> str:
    line(key, 255)
    if not key:
        raise InvalidValue("a label has no name", "write a key between the quotes")
    return text(str(value), 64 * 1024)


def journal_field(key: str, value: str | int) -> str:
    """conmon(8), --log-label: a journal field of the user, and a value without "="."""
    if not _JOURNAL_FIELD.fullmatch(key):
        raise InvalidValue(f"{shown(key)} is not a journal field", "capital letters, digits and '_', a letter first")
    if "=" in str(value):
        raise InvalidValue(f'{shown(value)} contains "="', "conmon does not take that in a label")
    return line(str(value))


def sysctl(key: str, value: str | int) -> str:
    """The form, and that it is a parameter of the container's own namespaces: others are the whole host's."""
    if not _SYSCTL.fullmatch(key):
        raise InvalidValue(f"{shown(key)} is not a kernel parameter", 'write for example "net.core.somaxconn"')
    return line(str(value))


def host_entry(key: str, value: str) -> str:
    """A line of /etc/hosts."""
    if not key or hostname(key) != key:
        raise InvalidValue("a host has no name", "write a key between the quotes")
    return value if value == "host-gateway" else addresses.check_ip(value)
