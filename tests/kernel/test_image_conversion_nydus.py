"""Images converted to Nydus images: mounted by the kernel, checked, pushed, exported."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.formats.erofs.tree import BLOCK
from lamina.formats.erofs.writer import Device, write_image
from lamina.formats.rafs.annotations import (
    BLOB,
    BLOB_MEDIA_TYPE,
    BOOTSTRAP,
    FS_VERSION,
)
from lamina.formats.rafs.bootstrap import read_bootstrap
from lamina.formats.rafs.tree import to_tree
from lamina.formats.rafs.units import lay_out_v5, lay_out_v6
from lamina.formats.rafs.writer.options import RafsOptions
from lamina.images.conversion import ConvertOptions
from lamina.images.manifest import Manifest, parse_manifest
from lamina.images.nydus import bootstrap_layer, open_bootstrap
from lamina.store import Store
from tests.erofs import fsck, mounted_image
from tests.hard_image import NAME, chain, hard_image, load_image, tree
from tests.rafs_devices import filled
from tests.trees import describe

pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.erofs]
TARGET = "registry.example/nydus:1"


@pytest.fixture
def store(root_dir: Path) -> Iterator[Store]:
    with Store(root_dir) as opened:
        yield opened


def manifest_of(store: Store, name: str) -> Manifest:
    target = store.image(name).target
    found = parse_manifest(store.images.content.read(target.digest), target.media_type)
    assert isinstance(found, Manifest)
    return found


def mountable(store: Store, manifest: Manifest, directory: Path) -> tuple[Path, list[Path]]:
    """Return an image that the kernel mounts, and its devices: version 6's is the bootstrap."""
    layer = bootstrap_layer(manifest)
    assert layer is not None
    with open_bootstrap(store.images.content, layer) as source:
        raw = source.read_at(0, source.size)
        bootstrap = read_bootstrap(source)
    layout = (lay_out_v6 if bootstrap.version == 6 else lay_out_v5)(bootstrap)
    blobs = {
        index: store.images.content.path(layer.digest).read_bytes()
        for index, layer in enumerate(manifest.layers[:-1])
    }
    assert [f"sha256:{blob.id}" for blob in bootstrap.blobs] == [
        layer.digest for layer in manifest.layers[:-1]
    ]
    image = directory / "image"
    image.write_bytes(raw)
    if bootstrap.version == 5:
        with open(image, "wb") as out:
            devices = [Device(device.size // BLOCK) for device in layout.devices]
            write_image(to_tree(bootstrap, layout), out, devices=devices)
    paths = []
    for number, content in enumerate(filled(layout, bootstrap, blobs)):
        paths.append(directory / f"device{number}")
        paths[-1].write_bytes(content)
    return image, paths


@pytest.mark.parametrize("version", [5, 6])
def test_the_kernel_shows_what_the_layers_unpacked_have(
    store: Store, tmp_path: Path, version: int
) -> None:
    started = time.time_ns()
    load_image(store, "overlayfs", *hard_image(), keep=True)
    expected = tree(store, "overlayfs", chain(store)[-1])
    ended = time.time_ns()
    options = ConvertOptions(nydus=RafsOptions(version, chunk_size=4096))
    converted = store.convert(NAME, TARGET, options=options)
    manifest = manifest_of(store, TARGET)
    *blobs, bootstrap = manifest.layers
    assert {layer.media_type for layer in blobs} == {BLOB_MEDIA_TYPE}
    assert all(layer.annotations == {BLOB: "true"} for layer in blobs)
    assert bootstrap.annotations == {BOOTSTRAP: "true", FS_VERSION: str(version)}
    assert [layer.target for layer in converted.nydus if layer.target] == list(manifest.layers)
    image, devices = mountable(store, manifest, tmp_path)
    fsck(image, devices)
    with mounted_image(image, tmp_path / "mnt", devices) as root:
        found = describe(root)
    for name, entry in expected.items():
        # Of directories that no layer describes, unpacking has its own time, and so has its root.
        if entry.mode.startswith("d") and (started < entry.mtime_ns < ended or name == "."):
            found[name] = found[name]._replace(mtime_ns=entry.mtime_ns)
    assert found == expected
    assert store.fsck(deep=True) == []
