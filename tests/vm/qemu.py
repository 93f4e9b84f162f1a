# SPDX-License-Identifier: Apache-2.0
"""Virtual machines for tests: the host tier's tree with its own kernel and every cgroup controller.

QEMU boots the kernel directly, on a throw-away view of one disk image. The way in is ssh over a port of
127.0.0.1 (the machine has no other network); "up" is one line on a virtio port, written when systemd says
it is running. Standard library only, like `tests.host.nspawn`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
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

from tests.host.machine import CLEAN_ENVIRONMENT, HostError, Process, cache, readable_or_ended, tail

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
BOOT_SEC = 240.0
STOP_SEC = 60.0
MEMORY_MB = 2048
NEEDED = {"qemu-system-x86_64": "qemu-system-x86", "mke2fs": "e2fsprogs", "ssh": "openssh-client"}
KVM_CREATE_VM = 0xAE01

READY_UNIT = """\
[Unit]
Description=Tell the machine outside that this one is up
[Service]
ExecStart=/bin/sh -c 'systemctl is-system-running --wait >/dev/virtio-ports/cleat.ready'
"""
NETWORK = """\
[Match]
Name=eth0
[Network]
Address=10.0.2.15/24
LinkLocalAddressing=no
"""
JOURNAL = "[Journal]\nStorage=persistent\nSystemMaxUse=256M\nRateLimitIntervalSec=0\nForwardToSyslog=no\n"


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
            "ConnectTimeout": "30",
        }
        return ["ssh", "-F", "/dev/null", *(f"-o{key}={value}" for key, value in settings.items()), *options]

    def reboot(self) -> None:
        """Reboots it and returns when it is up again."""
        with _ready_port(Path(self.scratch)) as ready:
            argv = self.command(["systemctl", "reboot"])
            subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
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


def image() -> Path:
    """The folder with disk, kernel, initrd and key, built once per tree and per text of this file."""
    if os.geteuid() != 0:
        raise HostError("building and booting virtual machines needs root")
    done = subprocess.run([HERE.parent / "host/tree", "--vm"], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise HostError("tests/host/tree --vm failed (see its messages above)")
    tree = Path(done.stdout.decode().strip())
    key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    path = tree.with_name(f"{tree.name}-image-{key}")
    with (cache() / ".lock-image").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_dir():
            part = path.with_name(path.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            _build_image(tree, part)
            part.rename(path)
            for old in tree.parent.glob(f"{tree.name}-image-*"):
                if old != path:
                    shutil.rmtree(old)
    return path


def _build_image(tree: Path, part: Path) -> None:
    for sub in ("upper", "work", "root"):
        (part / sub).mkdir(parents=True)
    _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "cleat-tests", "-f", str(part / "key")])
    host_key = (tree / "etc/ssh/ssh_host_ed25519_key.pub").read_text(encoding="ascii").split()[:2]
    (part / "known_hosts").write_text(f"vm {' '.join(host_key)}\n", encoding="ascii")
    _lay_out(part / "upper", (part / "key.pub").read_text(encoding="ascii"))
    for name in ("vmlinuz", "initrd.img"):
        shutil.copy(max((tree / "boot").glob(f"{name}-*")), part / name)
    fill = (
        'mount -t overlay cleat-vm "$1/root" -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work"\n'
        'mke2fs -q -t ext4 -O ^has_journal -L root -m 0 -E root_owner=0:0 -d "$1/root" "$1/disk" 8G'
    )
    _run(["unshare", "--mount", "--propagation=private", "sh", "-euc", fill, "sh", str(part), str(tree)])
    for sub in ("upper", "work", "root"):
        shutil.rmtree(part / sub)


def _lay_out(root: Path, public_key: str) -> None:
    units = "etc/systemd/system"
    files = {
        "root/.ssh/authorized_keys": public_key,
        "etc/systemd/network/10-eth0.network": NETWORK,
        "etc/systemd/journald.conf.d/cleat-tests.conf": JOURNAL,
        "etc/machine-id": os.urandom(16).hex() + "\n",
        "etc/hostname": "cleat-vm\n",
        "etc/hosts": "127.0.0.1 localhost cleat-vm\n::1 localhost\n",
        f"{units}/cleat-test-ready.service": READY_UNIT,
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (root / "root").chmod(0o700)
    (root / "root/.ssh").chmod(0o700)
    (root / "root/.ssh/authorized_keys").chmod(0o600)
    wants = root / units / "multi-user.target.wants"
    wants.mkdir()
    (wants / "cleat-test-ready.service").symlink_to("../cleat-test-ready.service")
    (wants / "systemd-networkd.service").symlink_to("/usr/lib/systemd/system/systemd-networkd.service")
    # The serial line is this machine's console log.
    (root / units / "serial-getty@ttyS0.service").symlink_to("/dev/null")


def _boot(name: str, picture: Path, scratch: Path) -> Booted:
    accelerator = "kvm" if kvm_usable() else "tcg,thread=multi"
    port = _free_port()
    # The throw-away view of the disk is a file in $TMPDIR.
    _run(_qemu(name, picture, scratch, port, accelerator), {**os.environ, "TMPDIR": str(scratch)})
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
    kernel = "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet systemd.show_status=no panic=-1"
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
        "-daemonize", "-pidfile", f"{scratch}/pid",
    ]  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
    """One ssh connection that every command shares: the key exchange is slow on an emulated processor."""
    Path(vm.scratch, "ssh").unlink(missing_ok=True)
    null = subprocess.DEVNULL
    log = Path(vm.scratch, "ssh.log")
    master = [*vm.ssh("-M", "-N", "-f", "-oServerAliveInterval=15"), "vm"]

    def knock() -> bool:
        with log.open("wb") as errors:
            done = subprocess.run(master, stdin=null, stdout=null, stderr=errors, timeout=60, check=False)
        return done.returncode == 0

    is_open = knock()
    for patience in (1, 2, 4, 8, 16):
        if is_open:
            break
        # sshd listens before it can answer; there is nothing to wait for but its answer.
        time.sleep(patience)
        is_open = knock()
    if not is_open:
        raise HostError(f"vm {vm.name}: ssh failed: {tail(log)}")


def _dispose(name: str) -> None:
    vm = booted(name)
    if vm is not None:
        vm.process.kill()
        vm.process.wait(STOP_SEC)
        if Path(vm.scratch, "ssh").exists():
            subprocess.run(vm.ssh("-O", "exit", "vm"), capture_output=True, check=False, timeout=10)
    if scratch_of(name).exists():
        shutil.rmtree(scratch_of(name))


def _keep(vm: Booted) -> None:
    path = Path(vm.scratch, "vm.json")
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(vm), indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _run(argv: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        check=False,
    )
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip()
        raise HostError(f"{argv[0]} failed with status {done.returncode}: {said}")
