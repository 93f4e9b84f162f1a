# SPDX-License-Identifier: Apache-2.0
"""The disk that virtual machines for tests boot from: the host tier's tree with its own kernel and a key for ssh.

It is built once per tree and per text of this file, and never written to: each machine has a throw-away view of it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from tests.host.machine import HostError, cache, run_tool

HERE = Path(__file__).resolve().parent

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


def image() -> Path:
    """The folder with disk, kernel, initrd and key, built once when it is not there yet."""
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
    run_tool(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "cleat-tests", "-f", str(part / "key")])
    host_key = (tree / "etc/ssh/ssh_host_ed25519_key.pub").read_text(encoding="ascii").split()[:2]
    (part / "known_hosts").write_text(f"vm {' '.join(host_key)}\n", encoding="ascii")
    _lay_out(part / "upper", (part / "key.pub").read_text(encoding="ascii"))
    for name in ("vmlinuz", "initrd.img"):
        shutil.copy(max((tree / "boot").glob(f"{name}-*")), part / name)
    fill = (
        'mount -t overlay cleat-vm "$1/root" -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work"\n'
        'mke2fs -q -t ext4 -O ^has_journal -L root -m 0 -E root_owner=0:0 -d "$1/root" "$1/disk" 8G'
    )
    run_tool(["unshare", "--mount", "--propagation=private", "sh", "-euc", fill, "sh", str(part), str(tree)])
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
