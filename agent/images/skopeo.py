# SPDX-License-Identifier: Apache-2.0
"""skopeo(1): argument lists (pure), and runs with retries. It does registries, login, TLS and signature policies."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from agent.definition.model import Pull
from agent.errors import CommandNotFound, DeadlineExceeded, PullFailed, Unsupported
from agent.images import failure
from agent.images.reference import Reference
from agent.spawn import child, tool

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]

IMAGE_TAG = "image"
_INSPECT_TIMEOUT = 60.0
_MANIFEST_MAX = 4 << 20
_DELAY_MAX = 60.0
_YEAR = 31536000.0
# What an administrator may set for the agent's unit: proxies, and where logins and authorities are
# (containers-auth.json(5)).
_PASSED_ON = (
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
    "REGISTRY_AUTH_FILE", "SSL_CERT_FILE", "SSL_CERT_DIR", "XDG_RUNTIME_DIR", "DOCKER_CONFIG",
)  # fmt: skip


def environment() -> dict[str, str]:
    """skopeo's environment: ours, a home for its defaults, and proxies."""
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    home = os.environ.get("HOME") or ("/root" if os.geteuid() == 0 else "/")
    return child.base_environment() | {"HOME": home} | passed


def access(pull: Pull, prefix: str = "") -> list[str]:
    """The options for reaching a registry; `prefix` is "src-" for `skopeo copy`."""
    found: list[str] = []
    if pull.auth_file:
        found.append(f"--authfile={pull.auth_file}")
    if not pull.tls_verify:
        found.append(f"--{prefix}tls-verify=false")
    if pull.cert_dir:
        found.append(f"--{prefix}cert-dir={pull.cert_dir}")
    return found


def require_files(reference: Reference, pull: Pull) -> None:
    """skopeo passes over what is not there, and fails with other words later. Raises PullFailed."""
    wanted = (("auth_file", pull.auth_file, os.path.isfile), ("cert_dir", pull.cert_dir, os.path.isdir))
    for key, path, is_there in wanted:
        if path and reference.is_remote and not is_there(path):
            raise PullFailed(
                f"{reference} cannot be fetched",
                key=f"pull.{key}",
                why=f"{path} is not a {'folder' if key == 'cert_dir' else 'file'}",
                hint="create it, or mend the path",
            )


def copy_arguments(reference: Reference, pull: Pull, layout: Path, blobs: Path, scratch: Path) -> list[str]:
    """Copy this machine's variant of an image into a layout whose blobs are shared.

    Signatures are checked by the policy, then dropped: a layout cannot hold them.
    """
    options = access(pull, "src-") if reference.is_remote else []
    return [
        "skopeo", "--tmpdir", os.fspath(scratch), "copy", *options, "--remove-signatures",
        "--dest-shared-blob-dir", os.fspath(blobs), reference.source, f"oci:{layout}:{IMAGE_TAG}",
    ]  # fmt: skip


def gzip_arguments(source: Path, target: Path, scratch: Path) -> list[str]:
    """Pack the layers of a local layout anew, for an umoci that does not know zstd."""
    return [
        "skopeo", "--insecure-policy", "--tmpdir", os.fspath(scratch), "copy", "--dest-compress-format", "gzip",
        f"oci:{source}:{IMAGE_TAG}", f"oci:{target}:{IMAGE_TAG}",
    ]  # fmt: skip


def inspect_arguments(reference: Reference, pull: Pull) -> list[str]:
    options = access(pull) if reference.is_remote else []
    return ["skopeo", "inspect", "--raw", *options, reference.source]


class Lines:
    """Turns skopeo's output into progress texts: how many of the blobs it has begun, and what comes after."""

    def __init__(self, reference: Reference, progress: Progress) -> None:
        self._reference = reference
        self._progress = progress
        self._rest = b""
        self._blobs = 0

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-4096:]
        for line in lines:
            text = self._text(line.decode(errors="replace"))
            if text:
                self._progress(f"pulling {self._reference}{text}")

    def _text(self, line: str) -> str:
        if re.match(r"Copying blob .*(skipped|already exists|done)", line):
            return ""
        if line.startswith("Copying blob"):
            self._blobs += 1
            return f": layer {self._blobs}"
        if line.startswith("Writing manifest"):
            return ": writing"
        return ""


async def run(
    argv: Sequence[str], reference: Reference, limit_sec: float, feed: Callable[[bytes], None] | None = None
) -> tool.Result:
    """One run. Raises PullFailed when it takes too long, Unsupported when skopeo is missing."""
    try:
        return await tool.run(
            argv, env=environment(), timeout=min(limit_sec, _YEAR), limit=_MANIFEST_MAX, on_output=feed
        )
    except DeadlineExceeded as e:
        raise PullFailed(
            f"{reference} was not fetched within {limit_sec:g} s",
            why=e.why[-300:],
            hint="check network and registry, or set pull.timeout_sec",
        ) from e
    except CommandNotFound as e:
        raise Unsupported(
            "images need skopeo", why=e.why, key="image", hint="install skopeo and umoci, or use rootfs"
        ) from e


async def copy(argv: Sequence[str], reference: Reference, pull: Pull, progress: Progress) -> None:
    """Copy, with the definition's retries (the delay doubles) inside one deadline. Raises PullFailed."""
    require_files(reference, pull)
    deadline = asyncio.get_running_loop().time() + min(pull.timeout_sec or math.inf, _YEAR)
    for attempt in range(pull.retry + 1):
        left = deadline - asyncio.get_running_loop().time()
        result = await run(argv, reference, max(left, 0.1), Lines(reference, progress).feed)
        if result.returncode == 0:
            return
        error, again = failure.classify(result.stderr.decode(errors="replace"), str(reference))
        delay = min(pull.retry_delay_sec * 2**attempt, _DELAY_MAX)
        if not again or attempt == pull.retry or left <= delay:
            raise error
        progress(f"pulling {reference}: {error.why[:120]}; next attempt in {delay:g} s")
        logger.debug("attempt %d of %s: %s", attempt + 1, reference, error)
        await asyncio.sleep(delay)


async def remote_digest(reference: Reference, pull: Pull) -> str:
    """The digest of what the reference means right now, where it is kept. Raises PullFailed."""
    require_files(reference, pull)
    limit = min(_INSPECT_TIMEOUT, pull.timeout_sec or _INSPECT_TIMEOUT)
    result = await run(inspect_arguments(reference, pull), reference, limit)
    if result.returncode != 0:
        raise failure.classify(result.stderr.decode(errors="replace"), str(reference))[0]
    return f"sha256:{hashlib.sha256(result.stdout).hexdigest()}"
