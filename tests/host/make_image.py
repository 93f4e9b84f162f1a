# SPDX-License-Identifier: Apache-2.0
"""Runs inside a test host: writes an image into an OCI layout, byte by byte, so that it may be as hostile as it gets.

Reads {"layout", "tag", "layers": [[entry...]...], "config"} from stdin. An entry has "name" (as it stands in the
archive) and one of "text", "file" (a file of the host), "link", "hardlink", "dir", "char" ([major, minor]); beside that
"mode", "uid", "gid", "xattrs".
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any


def tar_entry(archive: tarfile.TarFile, entry: dict[str, Any]) -> None:
    info = tarfile.TarInfo(entry["name"])
    info.uid, info.gid = entry.get("uid", 0), entry.get("gid", 0)
    info.mode = entry.get("mode", 0o755)
    info.mtime = 1_700_000_000
    info.pax_headers = {f"SCHILY.xattr.{name}": value for name, value in entry.get("xattrs", {}).items()}
    data = b""
    if "link" in entry:
        info.type, info.linkname = tarfile.SYMTYPE, entry["link"]
    elif "hardlink" in entry:
        info.type, info.linkname = tarfile.LNKTYPE, entry["hardlink"]
    elif entry.get("dir"):
        info.type = tarfile.DIRTYPE
    elif "char" in entry:
        info.type = tarfile.CHRTYPE
        info.devmajor, info.devminor = entry["char"]
    else:
        data = Path(entry["file"]).read_bytes() if "file" in entry else entry["text"].encode()
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


class Layout:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = folder / "blobs" / "sha256"
        self.blobs.mkdir(parents=True, exist_ok=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def put(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (self.blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": f"sha256:{digest}", "size": len(data)}

    def layer(self, entries: list[dict[str, Any]]) -> tuple[dict[str, Any], str]:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for entry in entries:
                tar_entry(archive, entry)
        plain = buffer.getvalue()
        packed = gzip.compress(plain, 1, mtime=0)
        return self.put(packed, "layer.v1.tar+gzip"), "sha256:" + hashlib.sha256(plain).hexdigest()

    def tag(self, manifest: dict[str, Any], tag: str) -> None:
        index = self.folder / "index.json"
        entry = {**manifest, "annotations": {"org.opencontainers.image.ref.name": tag}}
        index.write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def main() -> None:
    wanted = json.load(sys.stdin)
    layout = Layout(Path(wanted["layout"]))
    layers = [layout.layer(entries) for entries in wanted["layers"]]
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[wanted["machine"]],
        "os": "linux",
        "config": wanted["config"],
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": layout.put(json.dumps(config).encode(), "config.v1+json"),
        "layers": [descriptor for descriptor, _ in layers],
    }
    layout.tag(layout.put(json.dumps(manifest).encode(), "manifest.v1+json"), wanted["tag"])


main()
