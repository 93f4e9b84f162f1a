# SPDX-License-Identifier: Apache-2.0
"""Which annotations a container may carry: those that mean nothing to engines and runtimes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# Engines' and runtimes' knobs: systemd unit properties, hooks and handlers, checkpoint settings, virtual
# machines. Whoever can set them sets up the host, not the container (CVE-2024-3154).
_ACTED_ON = (
    "org.systemd.", "run.oci.", "io.podman.", "io.crun.", "io.container.", "io.containers.",
    "io.kubernetes.", "org.criu.", "module.wasm.", "krun.", "io.katacontainers.", "dev.gvisor.",
    "com.github.containers.",
)  # fmt: skip


def dropped_annotations(annotations: Iterable[str]) -> tuple[str, ...]:
    """Names of annotations that no container of ours may carry."""
    return tuple(sorted(name for name in annotations if name.startswith(_ACTED_ON)))


def kept_annotations(annotations: Mapping[str, str]) -> dict[str, str]:
    """The others."""
    return {name: value for name, value in annotations.items() if not name.startswith(_ACTED_ON)}
