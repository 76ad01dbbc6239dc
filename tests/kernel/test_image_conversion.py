"""Images converted to lazy ones: pushed, pulled lazily, and compared with their sources."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.config import load
from lamina.core.labels import REMOTE
from lamina.errors import NotFound, ResourceExhausted
from lamina.formats.estargz.annotations import TOC_DIGEST
from lamina.formats.estargz.writer import BlobFormat, BlobOptions
from lamina.images.conversion import ALL_LAYERS, ConvertOptions
from lamina.images.manifest import Manifest, parse_manifest
from lamina.images.progress import Event
from lamina.layer.limits import LayerLimits
from lamina.mount import temp_mount
from lamina.store import Store
from tests.fixtures_registry import LocalRegistry
from tests.fixtures_stargz import FILES, end_lazy, fetched, top, write_config
from tests.images import OCI_INDEX, Layer, digest, image, index, tar

pytestmark = [
    pytest.mark.root,
    pytest.mark.overlay,
    pytest.mark.erofs,
    pytest.mark.registry,
    pytest.mark.fuse,
]
OWN = {"stargz.index.json", ".prefetch.landmark", ".no.prefetch.landmark"}


@pytest.fixture
def store(root_dir: Path, tmp_path: Path) -> Iterator[Store]:
    with Store(root_dir, config=load(write_config(tmp_path, "fuse"))) as opened:
        yield opened
    end_lazy(root_dir)


@pytest.fixture
def source(store: Store, registry: LocalRegistry) -> str:
    """An image of three layers, of which two are the same."""
    first, second = (Layer.of(files) for files in FILES)
    files = image(first, second, first)
    registry.push(files.manifest, files.blobs, "source", "1")
    ref = f"{registry.host}/source:1"
    store.pull(ref, snapshotter="overlayfs", plain_http=True)
    return ref


def manifest_of(store: Store, name: str) -> Manifest:
    target = store.image(name).target
    found = parse_manifest(store.images.content.read(target.digest), target.media_type)
    assert isinstance(found, Manifest)
    return found


def upload(store: Store, name: str, registry: LocalRegistry) -> str:
    manifest = manifest_of(store, name)
    read = store.images.content
    blobs = [read.path(d.digest).read_bytes() for d in (manifest.config, *manifest.layers)]
    registry.push(read.read(store.image(name).target.digest), blobs, "lazy", "1")
    return f"{registry.host}/lazy:1"


def files_in(store: Store, snapshotter: str, ref: str, directory: Path) -> dict[str, bytes]:
    engine = store.snapshotter(snapshotter)
    mounts = engine.view("look", top(store, ref))
    try:
        with temp_mount(mounts, dir=directory, read_only=True) as root:
            found = [path for path in root.rglob("*") if path.is_file() and path.name not in OWN]
            return {str(path.relative_to(root)): path.read_bytes() for path in found}
    finally:
        engine.remove("look")


@pytest.mark.parametrize("format", BlobFormat)
def test_a_converted_image_is_lazy_and_the_same(
    store: Store,
    source: str,
    registry: LocalRegistry,
    tmp_path: Path,
    format: BlobFormat,
) -> None:
    options = ConvertOptions(
        blob=BlobOptions(format=format, chunk_size=64 << 10), prioritized={ALL_LAYERS: [b"a"]}
    )
    converted = store.convert(source, "registry.example/lazy:1", options=options)
    assert [(layer.blob is not None, layer.kept) for layer in converted.layers] == [(True, "")] * 2
    manifest = manifest_of(store, "registry.example/lazy:1")
    assert manifest.layers[0] == manifest.layers[2]
    assert all(TOC_DIGEST in layer.annotations for layer in manifest.layers)
    ref = upload(store, "registry.example/lazy:1", registry)
    expected = files_in(store, "overlayfs", source, tmp_path)
    store.remove_image("registry.example/lazy:1")
    store.collect()
    assert not store.images.content.has(manifest.layers[0].digest)
    store.pull(ref, snapshotter="stargz", plain_http=True)
    infos = list(store.snapshotter("stargz").walk())
    assert [REMOTE in info.labels for info in infos] == [True] * 3
    assert fetched(store) < sum(layer.size for layer in manifest.layers)
    assert files_in(store, "stargz", ref, tmp_path) == expected
    assert store.fsck() == []


def test_the_same_image_again_has_the_same_digest(store: Store, source: str) -> None:
    one = store.convert(source, "registry.example/one:1", options=ConvertOptions(threads=1))
    two = store.convert(source, "registry.example/two:1", options=ConvertOptions(threads=3))
    assert one.image.target == two.image.target


def test_content_that_is_missing_is_told_before_anything_is_made(store: Store, source: str) -> None:
    layer = manifest_of(store, source).layers[0]
    store.images.content.delete(layer.digest)
    with pytest.raises(NotFound, match="lamina images pull --no-unpack"):
        store.convert(source, "registry.example/lazy:1")
    with pytest.raises(NotFound):
        store.image("registry.example/lazy:1")


def test_what_follows_the_archive_counts_too(store: Store, registry: LocalRegistry) -> None:
    plain = tar({"a": b"1"}) + bytes(1 << 20)
    files = image(Layer(gzip.compress(plain), digest(plain)))
    registry.push(files.manifest, files.blobs, "source", "3")
    ref = f"{registry.host}/source:3"
    store.pull(ref, unpack=False, plain_http=True)
    options = ConvertOptions(limits=LayerLimits(max_bytes=1 << 20))
    with pytest.raises(ResourceExhausted, match="more than 1048576 bytes uncompressed"):
        store.convert(ref, "registry.example/lazy:3", options=options)
    assert list(store.images.content.ingests()) == []


class Removing:
    """Progress; when it is first told something, the image goes, and all that only it has named."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self.done = False

    def update(self, event: Event) -> None:
        if not self.done:
            self.done = True
            self._store.remove_image(self._name)
            self._store.collect()


def test_an_image_that_is_removed_meanwhile_is_converted_all_the_same(
    store: Store, registry: LocalRegistry
) -> None:
    files = image(*(Layer.of(files) for files in FILES))
    registry.push(files.manifest, files.blobs, "source", digest(files.manifest))
    registry.push(index(files), [], "source", "2", media_type=OCI_INDEX)
    ref = f"{registry.host}/source:2"
    store.pull(ref, unpack=False, plain_http=True)
    target = store.image(ref).target
    removing = Removing(store, ref)
    converted = store.convert(ref, "registry.example/lazy:2", progress=removing)
    assert removing.done
    assert len(converted.layers) == 2
    assert store.fsck(deep=True) == []
    store.collect()
    assert not store.images.content.has(target.digest)


_KILLED = """
import os, sys
from pathlib import Path
from lamina.images.progress import Stage
from lamina.store import Store

class Ending:
    def update(self, event):
        if event.stage is Stage.CONVERTING and event.offset:
            os._exit(9)

Store(Path(sys.argv[1])).convert(sys.argv[2], "registry.example/lazy:1", progress=Ending())
"""


def test_a_killed_conversion_is_no_fault_and_begun_anew(store: Store, source: str) -> None:
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(store.root), source], check=False)
    assert killed.returncode == 9
    assert len(list(store.images.content.ingests())) == 1
    assert store.fsck() == []
    store.convert(source, "registry.example/lazy:1")
    assert list(store.images.content.ingests()) == []
    assert store.fsck() == []
