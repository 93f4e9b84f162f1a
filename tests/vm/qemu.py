# SPDX-License-Identifier: Apache-2.0
"""Virtual machines for tests: the host tier's tree with its own kernel and every cgroup controller.

QEMU boots the kernel directly, on a throw-away view of one disk image. The way in is ssh over a port of
127.0.0.1 (the machine has no other network); "up" is one line on a virtio port, written when systemd says
it is running. QEMU ends at a reboot that nobody here asked for, so a machine that crashed is gone for all to see and
its console log ends with the kernel's words. Standard library only, like `tests.host.nspawn`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tests.host.machine import CLEAN_ENVIRONMENT, HostError, Process, cache, readable_or_ended, run_tool, tail
from tests.vm.image import image

if TYPE_CHECKING:
    from collections.abc import Iterator

BOOT_SEC = 240.0
STOP_SEC = 60.0
MONITOR_SEC = 30.0
MEMORY_MB = 2048
NEEDED = {"qemu-system-x86_64": "qemu-system-x86", "mke2fs": "e2fsprogs", "ssh": "openssh-client"}
KVM_CREATE_VM = 0xAE01


@dataclass(frozen=True)
class Booted:
    """A running virtual machine, as it is kept in its scratch folder and printed by `boot`."""

    name: str
    qemu: int
    qemu_start: int
    port: int
    accelerator: str
    scratch: str
    image: str
    state: str

    @property
    def process(self) -> Process:
        return Process(self.qemu, self.qemu_start)

    def alive(self) -> bool:
        return self.process.alive()

    def command(self, argv: list[str], *, fork: bool = True) -> list[str]:
        """The machine-side command that runs `argv` as root inside, in folder /, with a clean environment.

        `fork` is for the other kind of host: ssh has no use for it.
        """
        inside = shlex.join(["env", "-i", "-C", "/", *CLEAN_ENVIRONMENT, *argv])
        return [*self.ssh("-T"), "vm", inside]

    def ssh(self, *options: str) -> list[str]:
        settings = {
            "ControlPath": f"{self.scratch}/ssh",
            "HostKeyAlias": "vm",
            "HostName": "127.0.0.1",
            "Port": str(self.port),
            "User": "root",
            "IdentityFile": f"{self.image}/key",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": f"{self.image}/known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
            "ConnectTimeout": "60",
        }
        return ["ssh", "-F", "/dev/null", *(f"-o{key}={value}" for key, value in settings.items()), *options]

    @property
    def console(self) -> Path:
        return Path(self.scratch, "console.log")

    def lost(self) -> str:
        """Why nothing can be run in it any more, "" if something can; a broken way in is opened anew first.

        A machine that runs and does not answer is put to an end, as nobody can use it.
        """
        if self.alive() and self.ask_ssh("check"):
            return ""
        try:
            if self.alive():
                _open_way_in(self)
                return ""
        except HostError as error:
            if self.alive():
                self.process.kill()
                return str(error)
        return "QEMU has ended: the machine crashed, rebooted unasked or was stopped"

    def ask_ssh(self, command: str) -> bool:
        """`check` or `exit`, to the ssh process whose connection all commands share (ssh(1), -O)."""
        argv = [*self.ssh("-O", command), "vm"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            return subprocess.run(argv, capture_output=True, check=False, timeout=10).returncode == 0
        return False

    def reboot(self) -> None:
        """Reboots it and returns when it is up again."""
        argv = self.command(["systemctl", "reboot"])
        with _ready_port(Path(self.scratch)) as ready, _reboots_allowed(Path(self.scratch)):
            subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
            # Left alone it ends later, and takes its successor's socket away.
            self.ask_ssh("exit")
            state = _wait_ready(self.name, ready, self.process)
        if state not in ("running", "degraded"):
            raise HostError(f"vm {self.name}: after the reboot systemctl is-system-running says {state!r}")
        _open_way_in(self)


def kvm_usable() -> bool:
    """Whether the processor virtualizes and the device really makes machines.

    The device alone says too little: some cloud guests offer a /dev/kvm that emulates in software, without
    the processor flags, and stops in the middle of a kernel's start.
    """
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="ascii"), re.MULTILINE)
    if flags is None or not {"vmx", "svm"} & set(flags[1].split()):
        return False
    try:
        with Path("/dev/kvm").open("rb+", buffering=0) as device:
            os.close(fcntl.ioctl(device, KVM_CREATE_VM, 0))
    except OSError:
        return False
    return True


def folder() -> Path:
    return cache() / "vms"


def scratch_of(name: str) -> Path:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,40}", name):
        raise HostError(f"vm name {name!r}: must be lower case letters, digits and dashes, at most 41")
    return folder() / name


def booted(name: str) -> Booted | None:
    try:
        return Booted(**json.loads((scratch_of(name) / "vm.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def running(name: str) -> Booted:
    vm = booted(name)
    if vm is None or not vm.alive():
        raise HostError(f"vm {name}: is not running; boot it with: tests/vm/boot boot {name}")
    return vm


def machines() -> list[Booted]:
    names = sorted(p.name for p in folder().iterdir() if p.is_dir()) if folder().is_dir() else []
    return [vm for vm in map(booted, names) if vm is not None]


def boot(name: str) -> Booted:
    """Boots a machine and returns once its systemd is up and commands can be run. Raises HostError."""
    for tool, package in NEEDED.items():
        if shutil.which(tool) is None:
            raise HostError(f"{tool} is missing; install it with: apt-get install {package}")
    picture = image()
    scratch = scratch_of(name)
    old = booted(name)
    if old is not None and old.alive():
        raise HostError(f"vm {name}: is already running ({old.qemu}); stop it with: tests/vm/boot stop {name}")
    _dispose(name)
    scratch.mkdir(parents=True)
    try:
        vm = _boot(name, picture, scratch)
    except BaseException as error:
        console = tail(scratch / "console.log")
        _dispose(name)
        if isinstance(error, HostError):
            raise HostError(f"{error}\n--- console ---\n{console}") from error
        raise
    return vm


def stop(name: str) -> None:
    """Powers it off, by force if it takes too long, and removes everything of it. Not running is fine."""
    vm = booted(name)
    # One that was given up while it booted cannot be asked.
    if vm is not None and vm.alive() and vm.state != "starting":
        argv = vm.command(["systemctl", "poweroff", "--no-wall"])
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=30)
        vm.process.wait(STOP_SEC)
    _dispose(name)


def _boot(name: str, picture: Path, scratch: Path) -> Booted:
    # Not thread=multi: before QEMU 8.1 a processor can go on with code that another one has changed already, and the
    # kernel, which changes its own code whenever a jump label is switched, dies of a breakpoint that it took away.
    accelerator = "kvm" if kvm_usable() else "tcg,thread=single"
    port = _free_port()
    # The throw-away view of the disk is a file in $TMPDIR.
    run_tool(_qemu(name, picture, scratch, port, accelerator), {**os.environ, "TMPDIR": str(scratch)})
    process = Process.of(int((scratch / "pid").read_text(encoding="ascii")))
    vm = Booted(name, process.pid, process.start, port, accelerator, str(scratch), str(picture), "starting")
    _keep(vm)
    with _ready_port(scratch) as ready:
        vm = replace(vm, state=_wait_ready(name, ready, process))
    if vm.state not in ("running", "degraded"):
        raise HostError(f"vm {name}: systemctl is-system-running says {vm.state!r}")
    _open_way_in(vm)
    _keep(vm)
    return vm


def _qemu(name: str, picture: Path, scratch: Path, port: int, accelerator: str) -> list[str]:
    # Warnings are shown, and what goes wrong inside the kernel ends it: a test on a damaged one says nothing.
    kernel = "root=/dev/vda rw console=ttyS0 net.ifnames=0 systemd.show_status=no loglevel=5 oops=panic panic=-1"
    return [
        "qemu-system-x86_64", "-name", f"cleat-{name}", "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", "q35", "-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else "max",
        "-smp", "2", "-m", str(MEMORY_MB),
        "-kernel", f"{picture}/vmlinuz", "-initrd", f"{picture}/initrd.img", "-append", kernel,
        "-drive", f"file={picture}/disk,if=virtio,format=raw,snapshot=on,cache=unsafe",
        "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22",
        "-device", "virtio-net-pci,netdev=net,romfile=",
        "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=ready,path={scratch}/ready,server=on,wait=off",
        "-device", "virtserialport,chardev=ready,name=cleat.ready",
        "-serial", f"file:{scratch}/console.log",
        "-action", "reboot=shutdown", "-qmp", f"unix:{scratch}/monitor,server=on,wait=off",
        "-daemonize", "-pidfile", f"{scratch}/pid",
    ]  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _reboots_allowed(scratch: Path) -> Iterator[None]:
    _monitor(scratch, "set-action", reboot="reset")
    yield
    _monitor(scratch, "set-action", reboot="shutdown")


def _monitor(scratch: Path, command: str, **arguments: str) -> None:
    """One command to QEMU (QEMU Machine Protocol: a JSON object per line, with events in between)."""
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(MONITOR_SEC)
        monitor.connect(str(scratch / "monitor"))
        with monitor.makefile("rw", encoding="utf-8") as lines:
            for request in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                lines.write(json.dumps(request) + "\n")
                lines.flush()
                answer = next((line for line in lines if '"return"' in line or '"error"' in line), "nothing")
                if '"return"' not in answer:
                    raise HostError(f"QEMU's monitor answers {command} {arguments} with {answer.strip()}")


@contextlib.contextmanager
def _ready_port(scratch: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as ready:
        ready.connect(str(scratch / "ready"))
        yield ready


def _wait_ready(name: str, ready: socket.socket, process: Process) -> str:
    """What systemd calls its state, read from the line that cleat-test-ready.service writes."""
    deadline, said = time.monotonic() + BOOT_SEC, b""
    while (left := deadline - time.monotonic()) > 0:
        if not readable_or_ended(ready, process.pid, left):
            raise HostError(f"vm {name}: QEMU ended before the machine was up")
        with contextlib.suppress(BlockingIOError):
            said += ready.recv(4096, socket.MSG_DONTWAIT)
        if b"\n" in said:
            return said.decode(errors="replace").strip()
    raise HostError(f"vm {name}: not up after {BOOT_SEC:.0f} s")


def _open_way_in(vm: Booted) -> None:
    """One ssh connection that every command shares: the key exchange is slow on an emulated processor.

    It outlives a machine that stands still for two minutes.
    """
    Path(vm.scratch, "ssh").unlink(missing_ok=True)
    null = subprocess.DEVNULL
    log = Path(vm.scratch, "ssh.log")
    master = [*vm.ssh("-M", "-N", "-f", "-oServerAliveInterval=30", "-oServerAliveCountMax=4"), "vm"]

    def knock() -> bool:
        with log.open("wb") as errors, contextlib.suppress(subprocess.TimeoutExpired):
            return not subprocess.run(
                master, stdin=null, stdout=null, stderr=errors, timeout=120, check=False
            ).returncode
        return False

    is_open = knock()
    for patience in (1, 2, 4, 8, 16):
        if is_open:
            break
        # sshd listens before it can answer; there is nothing to wait for but its answer or the machine's end.
        if vm.process.wait(patience):
            break
        is_open = knock()
    if not is_open:
        raise HostError(f"vm {vm.name}: ssh failed: {tail(log)}")


def _dispose(name: str) -> None:
    vm = booted(name)
    if vm is not None:
        vm.process.kill()
        vm.process.wait(STOP_SEC)
        if Path(vm.scratch, "ssh").exists():
            vm.ask_ssh("exit")
    if scratch_of(name).exists():
        shutil.rmtree(scratch_of(name))


def _keep(vm: Booted) -> None:
    path = Path(vm.scratch, "vm.json")
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(vm), indent=1) + "\n", encoding="utf-8")
    part.replace(path)
