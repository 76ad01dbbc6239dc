"""Nydus images as OCI images have them: layers that are blobs, and one with the bootstrap."""

from __future__ import annotations

import json
from collections.abc import Mapping

from lamina.formats.rafs.annotations import BLOB, BLOB_MEDIA_TYPE, BOOTSTRAP, FS_VERSION
from tests.fixtures_registry import LocalRegistry
from tests.images import ImageFiles, Layer, digest, image
from tests.rafs import Made, directory, regular

Annotations = Mapping[str, str]


def blob_layer(blob: bytes) -> tuple[Layer, Annotations]:
    return Layer(blob, digest(blob), BLOB_MEDIA_TYPE), {BLOB: "true"}


def bootstrap_layer(
    bootstrap: bytes, version: str = "6", name: str = "image/image.boot"
) -> tuple[Layer, Annotations]:
    layer = Layer.of({"image/": None, name: bootstrap})
    return layer, {BOOTSTRAP: "true", FS_VERSION: version}


def plain_layer(files: Mapping[str, bytes | None]) -> tuple[Layer, Annotations]:
    return Layer.of(files), {}


def annotated_image(*layers: tuple[Layer, Annotations]) -> ImageFiles:
    """Return an image whose manifest has the annotations of its layers."""
    files = image(*(layer for layer, _ in layers))
    manifest = json.loads(files.manifest)
    for entry, (_, said) in zip(manifest["layers"], layers, strict=True):
        if said:
            entry["annotations"] = dict(said)
    return ImageFiles(json.dumps(manifest).encode(), files.config, files.layers)


def nydus_image(bootstrap: bytes, *blobs: bytes, version: str = "6") -> ImageFiles:
    return annotated_image(*map(blob_layer, blobs), bootstrap_layer(bootstrap, version))


def push(registry: LocalRegistry, files: ImageFiles, tag: str = "1") -> str:
    """Return the reference by which the registry has it."""
    registry.push(files.manifest, files.blobs, "test", tag)
    return f"{registry.host}/test:{tag}"


def tree_of(files: Mapping[str, bytes], mode: int = 0o644) -> Made:
    """Return a tree of regular files with these paths."""
    root = directory({})
    for path, data in files.items():
        *parents, name = path.encode().split(b"/")
        at = root
        for parent in parents:
            at = at.children.setdefault(parent, directory({}))
        at.children[name] = regular(data)
        at.children[name].mode = 0o100000 | mode
    return root
