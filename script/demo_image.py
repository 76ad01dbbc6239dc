"""Makes a small image of nothing but busybox and pushes it to a registry.

    python script/demo_image.py HOST:PORT/NAME:TAG

It prints nothing and needs no root; the registry speaks plain HTTP.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import shutil
import sys
import tarfile
from http.client import HTTPConnection
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def main() -> None:
    """Build the image's three parts and push them."""
    host, _, rest = sys.argv[1].partition("/")
    name, _, tag = rest.partition(":")
    layers = [_tar(_busybox()), _tar({"etc/motd": (0o644, b"hello from a layer of its own\n")})]
    blobs = [gzip.compress(layer, mtime=0) for layer in layers]
    config = _json(
        {
            "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer) for layer in layers]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": _descriptor(CONFIG, config),
            "layers": [_descriptor(LAYER, blob) for blob in blobs],
        }
    )
    for blob in (*blobs, config):
        location = _request(host, "POST", f"/v2/{name}/blobs/uploads/")
        target = location[location.index("/v2/") :] + "&digest=" + _digest(blob)
        _request(host, "PUT", target, blob, "application/octet-stream")
    _request(host, "PUT", f"/v2/{name}/manifests/{tag}", manifest, MANIFEST)


def _busybox() -> dict[str, tuple[int, bytes]]:
    """Return the files of the first layer; an empty content with mode 0 is a link to busybox."""
    path = shutil.which("busybox")
    if path is None:
        sys.exit("demo_image: busybox is not installed")
    links = {f"bin/{name}": (0, b"") for name in ("sh", "echo", "cat", "ls", "true", "uname")}
    return {"bin/busybox": (0o755, Path(path).read_bytes()), **links}


def _tar(files: dict[str, tuple[int, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for directory in sorted({name.rpartition("/")[0] for name in files}):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name, (mode, content) in files.items():
            entry = tarfile.TarInfo(name)
            if mode:
                entry.mode, entry.size = mode, len(content)
            else:
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


def _request(host: str, method: str, path: str, body: bytes = b"", kind: str = "") -> str:
    """Return the answer's Location."""
    connection = HTTPConnection(host, timeout=30)
    try:
        connection.request(method, path, body, {"Content-Type": kind} if kind else {})
        answer = connection.getresponse()
        said = answer.read()
    finally:
        connection.close()
    if answer.status not in {201, 202}:
        sys.exit(f"demo_image: {method} {path}: {answer.status} {said.decode(errors='replace')}")
    return answer.getheader("Location", "")


if __name__ == "__main__":
    main()
