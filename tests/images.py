"""Small images made in memory: layers with `tarfile`, and the documents around them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar(files: Mapping[str, bytes | None]) -> bytes:
    """Return an archive: bytes are a file's content, None makes a directory (name ends in `/`)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name.rstrip("/"))
            info.mtime = 1_600_000_000
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(info)
            else:
                info.size, info.mode = len(content), 0o644
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


@dataclass(frozen=True)
class Layer:
    """A layer; `blob` is what is distributed."""

    blob: bytes
    diff_id: str
    media_type: str = OCI_LAYER_GZIP

    @property
    def digest(self) -> str:
        return digest(self.blob)

    @classmethod
    def of(cls, files: Mapping[str, bytes | None], *, compress: bool = True) -> Layer:
        plain = tar(files)
        if not compress:
            return cls(plain, digest(plain), OCI_LAYER)
        return cls(gzip.compress(plain, 1, mtime=0), digest(plain))


def descriptor(data: bytes, media_type: str, **more: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}


@dataclass(frozen=True)
class ImageFiles:
    """One image as bytes: manifest, configuration, layers."""

    manifest: bytes
    config: bytes
    layers: tuple[Layer, ...]
    blobs: list[bytes] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "blobs", [self.config, *(layer.blob for layer in self.layers)])

    @property
    def digest(self) -> str:
        return digest(self.manifest)

    @property
    def diff_ids(self) -> list[str]:
        return [layer.diff_id for layer in self.layers]


def image(
    *layers: Layer,
    config: Mapping[str, object] | None = None,
    architecture: str = ARCHITECTURE,
    diff_ids: Sequence[str] | None = None,
) -> ImageFiles:
    """Return an image of these layers, base first; `diff_ids` may lie."""
    ids = [layer.diff_id for layer in layers] if diff_ids is None else list(diff_ids)
    document = {
        "architecture": architecture,
        "os": "linux",
        "config": dict(config or {"Cmd": ["/bin/sh"]}),
        "rootfs": {"type": "layers", "diff_ids": ids},
    }
    config_bytes = json.dumps(document).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(config_bytes, OCI_CONFIG),
        "layers": [descriptor(layer.blob, layer.media_type) for layer in layers],
    }
    return ImageFiles(json.dumps(manifest).encode(), config_bytes, layers)


def index(*images: ImageFiles) -> bytes:
    """Return an index of these images, each for the platform that its configuration names."""
    entries = []
    for each in images:
        said = json.loads(each.config)
        platform = {"os": said["os"], "architecture": said["architecture"]}
        entries.append(descriptor(each.manifest, OCI_MANIFEST, platform=platform))
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
