# SPDX-License-Identifier: Apache-2.0
"""Ways out of a container that others had to close, tried here: each test has the number it is about.

What concerns images (WORKDIR and /dev links in layers) is in test_images.py, volumes of images in test_volumes.py.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.host.isolation import definition, exec_in, refusals, running, spec

if TYPE_CHECKING:
    from tests.host.hosts import Host

RUNTIMES = pytest.mark.parametrize("runtime", ["crun", "runc"])
CANARY = "/run/canary"
# Where the runtime makes the scope, the agent asks for these.
_PROPERTIES = (
    "After", "Before", "CollectMode", "DefaultDependencies", "KillSignal", "TimeoutStopUSec", "Wants",
)  # fmt: skip


def own_root(host: Host, name: str, script: str) -> str:
    """A root folder of the test's own, changed by a script that runs in it."""
    path = f"/srv/hostile-{name}"
    made = host.rootfs("isolated")
    host.run(["sh", "-c", 'rm -rf "$2"; cp -a "$1" "$2"; cd "$2"; eval "$3"', "sh", made, path, script])
    return path


@RUNTIMES
def test_2019_5736_programs_of_the_host_cannot_be_written(clean: Host, runtime: str) -> None:
    """The first process and executed ones are never a program of the host that the payload could open for writing."""
    programs = "/usr/bin/crun /usr/sbin/runc /usr/bin/conmon /usr/libexec/cleat/cleat-agent"
    before = clean.run(f"sha256sum {programs}").stdout
    # Executing /proc/self/exe means the runtime, if that is what runs; it is a copy or read-only then.
    root = own_root(clean, "exe", "ln -s /proc/self/exe bin/overwrite")
    loop = "while :; do for p in /proc/[0-9]*; do (echo spoilt >$p/exe) 2>/dev/null; done; usleep 1000; done"
    running(clean, "exe", f"rootfs = '{root}'\ncommand = ['/bin/sh', '-c', '{loop}']", runtime=runtime)
    for _ in range(5):
        clean.cleat("exec", "exe", "--", "/bin/overwrite", check=False)
        clean.cleat("exec", "exe", "--", "/bin/true", check=False)
    assert clean.run(f"sha256sum {programs}").stdout == before


def test_2019_5736_crun_is_on_a_read_only_mount_also_when_a_package_replaces_it(clean: Host) -> None:
    """Else it would run itself a second time, which takes as long as its work."""
    for name, script in ("before", "true"), ("after", "cp -a /usr/bin/crun /root/crun; mv /root/crun /usr/bin/crun"):
        clean.run(script)
        running(clean, name)
        conmon = clean.run("pgrep --newest --exact conmon").stdout.strip()
        (mount,) = [line for line in clean.read(f"/proc/{conmon}/mountinfo").splitlines() if "/bin/crun" in line]
        assert mount.split()[5].split(",")[0] == "ro"


@RUNTIMES
def test_2024_21626_no_working_directory_through_a_fd(clean: Host, runtime: str) -> None:
    folders = {f"cwd{fd}": f'working_directory = "/proc/self/fd/{fd}"' for fd in (3, 6, 7, 8, 9, 10)}
    for name, said in refusals(clean, folders, runtime=runtime).items():
        assert "working_directory" in said or f"/proc/self/fd/{name.removeprefix('cwd')}" in said


@RUNTIMES
def test_2024_21626_nor_for_executed_commands(clean: Host, runtime: str) -> None:
    running(clean, "cwd", runtime=runtime)
    for fd in range(3, 16):
        result = clean.cleat("exec", "-w", f"/proc/self/fd/{fd}", "cwd", "--", "pwd", check=False)
        assert result.returncode != 0, result.stdout


@RUNTIMES
def test_2021_30465_mount_targets_that_are_links_stay_inside(clean: Host, runtime: str) -> None:
    clean.run(f"rm -rf {CANARY}; mkdir {CANARY}; echo host >{CANARY}/file")
    # The one leads out by a path, the other through another mount.
    root = own_root(clean, "links", f"mkdir data; ln -s ../../../../../..{CANARY} leads-out; ln -s data/swap via")
    clean.run("rm -rf /srv/shared; mkdir /srv/shared; ln -s /run /srv/shared/swap")
    mounts = "\n".join(
        f'[[mount]]\ntype = "{kind}"\n{source}target = "{target}"'
        for kind, source, target in (
            ("bind", 'source = "/srv/shared"\n', "/data"),
            ("tmpfs", "", "/leads-out"),
            ("tmpfs", "", "/via/canary"),
        )
    )
    definition(clean, "links", f'rootfs = "{root}"\n{mounts}', runtime=runtime)
    clean.cleat("reload-agent", check=False)
    assert clean.read(f"{CANARY}/file") == "host\n"
    assert CANARY not in clean.read("/proc/1/mountinfo")


@RUNTIMES
def test_2026_41579_linked_mount_points_are_refused(clean: Host, runtime: str) -> None:
    linked = {
        name: own_root(clean, name, f"rmdir {name}; ln -s ../../../../run {name}") for name in ("dev", "proc", "sys")
    }
    roots = {name: f'rootfs = "{root}"' for name, root in linked.items()}
    for said in refusals(clean, roots, runtime=runtime).values():
        assert "symbolic link" in said


@RUNTIMES
def test_2025_31133_masked_paths_show_nothing_of_the_host(clean: Host, runtime: str) -> None:
    root = own_root(clean, "null", "rm -rf dev/null; ln -s /etc/shadow dev/null")
    running(clean, "null", f'rootfs = "{root}"', runtime=runtime)
    seen = exec_in(clean, "null", "cat /proc/kcore /proc/keys /proc/timer_list | wc -c; stat -c %t:%T /dev/null")
    assert seen == "0\n1:3\n"


@RUNTIMES
def test_2025_52565_a_console_that_is_a_link(clean: Host, runtime: str) -> None:
    clean.run(f"rm -rf {CANARY}; echo host >{CANARY}")
    root = own_root(clean, "console", f"ln -s ../../../../..{CANARY} dev/console")
    running(clean, "console", f'rootfs = "{root}"\nterminal = true', runtime=runtime)
    assert clean.read(CANARY) == "host\n"
    assert CANARY not in clean.read("/proc/1/mountinfo")


@RUNTIMES
def test_2026_30892_odd_users_are_refused_or_are_what_they_say(clean: Host, runtime: str) -> None:
    running(clean, "who", runtime=runtime)
    for user in ("0x21", "+33", "033", " 33", "33 ", "-1", "4294967295", "4294967296", "33:", "33\n0", "٣٣"):
        result = clean.cleat("exec", f"--user={user}", "who", "--", "id", "-u", check=False)
        # Never root by accident, and no other number than the one that is written there.
        assert result.returncode == 2 or result.stdout == "33\n", result


@RUNTIMES
def test_2022_27649_and_27650_no_inheritable_capabilities(clean: Host, runtime: str) -> None:
    show = "grep -E '^Cap(Inh|Amb)' /proc/self/status"
    running(clean, "caps", '[security]\ncapabilities_add = ["NET_ADMIN"]', runtime=runtime)
    for options in ([], ["-u", "www-data"], ["-u", "0", "--cap-add", "SYS_TIME"]):
        for line in exec_in(clean, "caps", show, *options).splitlines():
            assert int(line.split()[1], 16) == 0
    # Somebody who is not root and asks for a capability must have it somewhere: there, but no other.
    asked = exec_in(clean, "caps", show, "-u", "www-data", "--cap-add", "NET_RAW")
    assert {int(line.split()[1], 16) for line in asked.splitlines()} == {1 << 13}


@RUNTIMES
def test_2026_55686_a_working_directory_that_is_a_link(clean: Host, runtime: str) -> None:
    clean.run(f"rm -rf {CANARY}; mkdir {CANARY}")
    root = own_root(clean, "workdir", f"ln -s ../../../../..{CANARY} work")
    before = clean.run(f"stat -c '%a %u %g %Y' {CANARY}").stdout
    folders = {"work": "/work", "made": "/work/made"}
    texts = {n: f'rootfs = "{root}"\nuser = "33"\nworking_directory = "{folder}"' for n, folder in folders.items()}
    assert all(refusals(clean, texts, runtime=runtime).values())
    assert clean.run(f"ls -A {CANARY}; stat -c '%a %u %g %Y' {CANARY}").stdout == before


def test_2020_14370_variables_stay_with_their_container(clean: Host) -> None:
    for name in ("first", "second", "third"):
        definition(clean, name, f'environment = {{ {name.upper()} = "1" }}')
    clean.reload()
    clean.cleat("exec", "-e", "EXECUTED=1", "first", "--", "true")
    clean.cleat("restart", "first")
    for name in ("first", "second", "third"):
        foreign = {"FIRST", "SECOND", "THIRD", "EXECUTED"} - {name.upper()}
        names = {item.partition("=")[0] for item in spec(clean, name)["process"]["env"]}
        assert not foreign & names
        assert not foreign & {item.partition("=")[0] for item in exec_in(clean, name, "env").splitlines()}


@RUNTIMES
def test_2024_3154_annotations_do_not_reach_systemd(clean: Host, runtime: str) -> None:
    annotations = {
        "org.systemd.property.ExecStartPost": "[('/bin/touch', ['touch', '/run/canary'], false)]",
        "org.systemd.property.Description": "'theirs'",
        "run.oci.hooks.stdout": "/run/canary",
        "io.podman.annotations.x": "y",
        "io.crun.keep_original_groups": "1",
        "harmless": "yes",
    }
    table = ", ".join(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in annotations.items())
    for mode in ("split", "enabled"):
        running(clean, "notes", f'annotations = {{ {table} }}\n[cgroup]\nmode = "{mode}"', runtime=runtime)
        kept = spec(clean, "notes").get("annotations", {})
        ours = {f"org.systemd.property.{name}" for name in _PROPERTIES}
        assert set(kept) - ours == {"harmless"}
        assert "theirs" not in clean.unit("cleat-notes.scope", "Description")["Description"]
        warned = clean.wait_journal("CLEAT_CONTAINER=notes", where=lambda e: "annotations" in e["MESSAGE"])
        assert "org.systemd.property.ExecStartPost" in warned["MESSAGE"]
        clean.remove_definition("notes")
        clean.reload()


def test_2022_0811_parameters_of_the_host_are_refused(clean: Host) -> None:
    names = ("kernel.core_pattern", "net.ipv4.ip_forward", "vm.overcommit_memory", "fs.suid_dumpable")
    # The values of now: the kernel may be shared with more than this host, should one of them get through.
    before = clean.run(["sysctl", "-n", *names]).stdout
    wishes = dict(zip(names, before.splitlines(), strict=True))
    pattern = wishes["kernel.core_pattern"]
    wishes["kernel.shm_rmid_forced=1+kernel.core_pattern"] = pattern
    wishes["kernel.shmmax/../core_pattern"] = pattern
    wishes["kernel/core_pattern"] = pattern
    wishes["fs.mqueue/../suid_dumpable"] = wishes["fs.suid_dumpable"]
    table = "[security]\nsysctls = {{ {} = {} }}"
    texts = {f"knob{i}": table.format(json.dumps(k), json.dumps(v)) for i, (k, v) in enumerate(wishes.items())}
    for said in refusals(clean, texts).values():
        assert "sysctl" in said
    assert clean.run(["sysctl", "-n", *names]).stdout == before


def test_2022_0811_values_hold_no_second_parameter(clean: Host) -> None:
    table = '[network]\nmode = "private"\n[security]\nsysctls = { "net.ipv4.ip_forward" = "1\\nkernel.x=1" }'
    assert "sysctl" in refusals(clean, {"knobs": table})["knobs"]


def test_2022_4318_and_2026_15809_line_breaks_write_no_passwd(clean: Host) -> None:
    """With the real byte, which "\\n" is in TOML's basic strings."""
    made = clean.rootfs("isolated")
    files = ["sha256sum", *(f"{made}/etc/{name}" for name in ("passwd", "group", "hosts"))]
    before = clean.run(files).stdout
    values = {
        f"{key.lower()}{i}": f'environment = {{ {key} = "/root{byte}evil:x:0:0::/:/bin/sh" }}'
        for key in ("HOME", "A")
        for i, byte in enumerate(("\\n", "\\r", "\\u0000", "\\u0085"))
    }
    for name, said in refusals(clean, values).items():
        if not said:
            assert "evil" not in exec_in(clean, name, "cat /etc/passwd /etc/group /etc/hosts /etc/hostname")
        assert said or name.startswith("a") or name == "home3"
    assert clean.run(files).stdout == before


def test_line_breaks_in_other_keys_are_refused(clean: Host) -> None:
    keys = ("user", "hostname", "working_directory", "description")
    said = refusals(clean, {f"in-{key}".replace("_", "-"): f'{key} = "/x\\nevil:x:0:0::/:/bin/sh"' for key in keys})
    assert len(said) == len(keys)
    assert all(said.values())


def test_2022_31030_output_of_executed_commands_does_not_fill_the_agent(clean: Host) -> None:
    running(clean, "flood", '[health]\ncommand = ["/bin/sh", "-c", "yes | head -c 100000000"]\ninterval_sec = "0.3s"')
    agent = clean.unit("cleat.service", "MainPID")["MainPID"]

    def memory() -> int:
        lines = clean.read(f"/proc/{agent}/status").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

    before = memory()
    clean.wait_event("flood", "healthy", timeout=60)
    # Nobody reads that session's output.
    with clean.start(["sh", "-c", "cleat exec flood -- sh -c 'yes | head -c 300000000' | sleep 5"]) as reader:
        reader.wait(timeout=60)
    assert memory() - before < 16 << 10
    assert len(clean.status("flood")["health_output"]) <= 4096


@RUNTIMES
def test_2023_0778_links_in_volumes_lead_nowhere(clean: Host, runtime: str) -> None:
    clean.run(f"rm -rf {CANARY}; mkdir {CANARY}; echo host >{CANARY}/file")
    volume = '[[mount]]\ntype = "volume"\nsource = "swapped"\ntarget = "/data"'
    running(clean, "volume", volume, runtime=runtime)
    exec_in(clean, "volume", f"ln -s ../../../../../..{CANARY} /data/link; ln -s {CANARY} /data/absolute")
    clean.cleat("restart", "volume")
    exec_in(clean, "volume", "cat /data/link/file && exit 1; cat /data/absolute/file && exit 1; true")
    listed = clean.run(["cat", f"{CANARY}/file"]).stdout
    assert listed == "host\n"
    # Nor does the volume's own folder, replaced while nothing runs, take the place of something else.
    clean.cleat("stop", "volume")
    folder = "/var/lib/cleat/volumes/swapped"
    assert clean.exists(folder)
    clean.run(["rm", "-rf", folder])


@RUNTIMES
def test_2024_9341_a_socket_folder_cannot_be_led_astray(clean: Host, runtime: str) -> None:
    """What the agent mounts itself comes to lie inside, wherever the root's own links point."""
    clean.run(f"rm -rf {CANARY}; mkdir {CANARY}")
    root = own_root(clean, "run", f"rmdir run; ln -s ../../../..{CANARY} run")
    text = f'rootfs = "{root}"\n[service]\nnotify = "container"\ntimeout_start_sec = "2s"\nrestart = "no"'
    definition(clean, "run", text, runtime=runtime)
    clean.cleat("reload-agent", check=False)
    assert clean.run(["ls", "-A", CANARY]).stdout == ""
    assert CANARY not in clean.read("/proc/1/mountinfo")


def test_versions_with_known_holes_are_told(clean: Host) -> None:
    """Debian's own have some; nothing starts on the worst."""
    said = clean.run("journalctl -q -t cleat -o cat CLEAT_EVENT=feature-missing").stdout
    assert "CVE-2026-47766" in said or "CVE-2025-31133" in said
    false_crun = '#!/bin/sh\n[ "$1" = --version ] && echo "crun version 1.4.3"; exit 0\n'
    clean.write("/usr/local/bin/oldcrun", false_crun, mode=0o755)
    try:
        definition(clean, "old", "autostart = false", runtime="/usr/local/bin/oldcrun")
        clean.reload()
        result = clean.cleat("start", "old", check=False)
        assert result.returncode == 1, os.linesep + result.stderr
        assert "CVE-2022-27650" in result.stderr
    finally:
        clean.run(["rm", "-f", "/usr/local/bin/oldcrun"])
