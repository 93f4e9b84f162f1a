# SPDX-License-Identifier: Apache-2.0
"""References of images: text to value, pure. Local transports are those of containers-transports(5).

A bare name is Docker Hub's, as it always was for skopeo: `nginx` means docker.io/library/nginx:latest. The search list
and the aliases for short names of containers-registries.conf(5) are not asked, so that a definition means the same
image on every host; its mirrors and its blocked registries do count, since skopeo does the fetching.
"""

from __future__ import annotations

import re

import msgspec

from agent.errors import InvalidArgument

_DEFAULT_REGISTRY = "docker.io"
_LOCAL = ("oci", "oci-archive", "docker-archive", "dir")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """An image's place. For `docker`, `name` is registry and repository; else the path and what follows it."""

    transport: str
    name: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        """One text for all spellings of the same image. A digest says all; a tag beside it says nothing more."""
        if self.transport != "docker":
            return f"{self.transport}:{self.name}"
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"

    @property
    def source(self) -> str:
        """The argument of skopeo(1), which takes a tag or a digest, not both."""
        return f"docker://{self}" if self.transport == "docker" else str(self)

    @property
    def is_remote(self) -> bool:
        return self.transport == "docker"

    @property
    def is_fixed(self) -> bool:
        """Whether it can only ever mean the same content."""
        return bool(self.digest)


def parse(text: str) -> Reference:
    """ "nginx", "quay.io/a/b:1", "name@sha256:…", "name:tag@sha256:…", "oci:/path:tag" … Raises InvalidArgument."""
    transport, colon, rest = text.partition(":")
    if colon and transport in _LOCAL:
        if not rest.startswith("/"):
            raise _invalid(text, f'write "{transport}:/PATH"')
        return Reference(transport=transport, name=rest)
    text = text.removeprefix("docker://") if text.startswith("docker://") else text.removeprefix("docker:")
    name, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _invalid(text, "a digest is sha256: and 64 digits of 0-9 and a-f")
    name, tag = _split_tag(name)
    if not name or (tag and not _TAG.fullmatch(tag)):
        raise _invalid(text, 'write for example "docker.io/library/nginx:1.27"')
    if not tag and not digest:
        tag = "latest"
    return Reference(transport="docker", name=_with_registry(name), tag=tag, digest=digest)


def _split_tag(name: str) -> tuple[str, str]:
    """A colon after the last slash begins a tag; one before it, a port."""
    head, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    return f"{head}{slash}{last}", tag


def _with_registry(name: str) -> str:
    first, slash, rest = name.partition("/")
    if slash and (set(first) & {".", ":"} or first == "localhost"):
        registry, repository = first, rest
    else:
        registry, repository = _DEFAULT_REGISTRY, name
    if registry in {"docker.io", "index.docker.io"}:
        registry = _DEFAULT_REGISTRY
        repository = repository if "/" in repository else f"library/{repository}"
    return f"{registry}/{repository}"


def _invalid(text: str, hint: str) -> InvalidArgument:
    return InvalidArgument(f"{text!r} is not the reference of an image", key="image", hint=hint)
