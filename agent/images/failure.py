# SPDX-License-Identifier: Apache-2.0
"""What skopeo and umoci say when they fail, as errors with advice; pure. Neither has codes: their texts are matched."""

from __future__ import annotations

import re

import msgspec

from agent.errors import PullFailed


class _Case(msgspec.Struct, frozen=True):
    pattern: re.Pattern[str]
    what: str
    hint: str
    again: bool = False


def _case(pattern: str, what: str, hint: str, *, again: bool = False) -> _Case:
    return _Case(re.compile(pattern, re.IGNORECASE), what, hint, again)


# The first that matches. `again`: may be gone in a moment.
_CASES = (
    _case(
        r"no space left on device|disk quota exceeded",
        "there is no space left for the image",
        "cleat prune; or make the file system of /var/lib/cleat larger",
    ),
    _case(
        r"no policy\.json file found",
        "the signature policy is missing",
        "install containers-common (Debian: golang-github-containers-common); see containers-policy.json(5)",
    ),
    _case(
        r"invalid policy|error loading trust policy",
        "the signature policy cannot be read",
        "mend /etc/containers/policy.json; see containers-policy.json(5)",
    ),
    _case(
        r"rejected by policy|source image rejected|signature was required|invalid signature",
        "the signature policy of this host rejects the image",
        "sign the image, or allow it in /etc/containers/policy.json",
    ),
    _case(
        r"getting username and password",
        "the logins for registries cannot be read",
        "mend pull.auth_file (containers-auth.json(5)), or write it anew: skopeo login --authfile FILE REGISTRY",
    ),
    _case(
        r"unauthorized|authentication required|access denied|access to the resource is denied"
        r"|invalid username/password",
        "the registry does not let us read the image",
        "skopeo login --authfile FILE REGISTRY, and set pull.auth_file; or check the image's name",
    ),
    _case(
        r"toomanyrequests|too many requests|rate limit",
        "the registry refuses more downloads for now",
        "log in (pull.auth_file), use a mirror, or try later",
    ),
    _case(
        r"http: server gave HTTP response to HTTPS client",
        "the registry does not speak TLS",
        "set pull.tls_verify = false, or give the registry a certificate",
    ),
    _case(
        r"x509:|certificate|tls: ",
        "the registry's certificate is not accepted",
        "put the authority's certificate into /etc/containers/certs.d/REGISTRY/, or set pull.cert_dir",
    ),
    _case(
        r"manifest unknown|name unknown|repository .*not found|no image found|unknown image|\b404\b"
        r"|no such file or directory|reference .*not found|no descriptor found|no such manifest",
        "there is no such image",
        "check the image's name and tag",
    ),
    _case(
        r"no image found in (manifest list|image index)|choosing an image from manifest list",
        "the image is not made for this kind of machine",
        "name an image that has this architecture",
    ),
    _case(
        r"no such host|name resolution|server misbehaving",
        "the registry's name cannot be resolved",
        "check the image's name, and resolvectl query REGISTRY",
        again=True,
    ),
    _case(
        r"connection refused|connection reset|timeout|deadline exceeded|unreachable|EOF|\b50[0234]\b|no route to host"
        r"|broken pipe|internal server error|bad gateway|service unavailable|digest (mismatch|did not match)",
        "the registry cannot be reached",
        "check network and registry",
        again=True,
    ),
)

_LINE = re.compile(r'^time="[^"]*" level=(\w+) msg="((?:[^"\\]|\\.)*)"')
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_UMOCI_CROSS = "\N{VECTOR OR CROSS PRODUCT}"
_WORDS_MAX = 600


def words(stderr: str) -> str:
    """The error itself, out of what a tool wrote to stderr: the last fatal line, without frills."""
    lines = [_COLOUR.sub("", line).strip().lstrip(_UMOCI_CROSS).strip() for line in stderr.splitlines()]
    found = [line for line in lines if line]
    for line in reversed(found):
        logged = _LINE.match(line)
        if logged and logged[1] in {"fatal", "error"}:
            return logged[2].replace('\\"', '"').replace("\\n", " ")[:_WORDS_MAX]
    return found[-1][:_WORDS_MAX] if found else "no reason given"


def classify(stderr: str, reference: str) -> tuple[PullFailed, bool]:
    """The error to raise, and whether another attempt could end better."""
    text, registry = words(stderr), reference.partition("/")[0]
    for case in _CASES:
        if case.pattern.search(text):
            hint = case.hint.replace("REGISTRY", registry)
            return PullFailed(f"{reference}: {case.what}", why=text, hint=hint), case.again
    return PullFailed(f"{reference} cannot be fetched", why=text, hint="try it by hand: skopeo inspect"), True
