"""Images converted to Nydus images: mounted by the kernel, checked, pushed, exported."""

from __future__ import annotations

import gzip
import json
import struct
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lamina.core.digest import Digest
from lamina.errors import InvalidArgument, NotImplementedHere
from lamina.formats.erofs.tree import BLOCK
from lamina.formats.erofs.writer import Device, write_image
from lamina.formats.rafs.annotations import (
    BLOB,
    BLOB_MEDIA_TYPE,
    BOOTSTRAP,
    FS_VERSION,
    REF,
    REFERENCE_BLOB_IDS,
)
from lamina.formats.rafs.blob_meta import read_blob_meta
from lamina.formats.rafs.bootstrap import read_bootstrap
from lamina.formats.rafs.flags import BlobFeatures, Compressor
from lamina.formats.rafs.layout import V6_EXTENDED_OFFSET
from lamina.formats.rafs.tree import to_tree
from lamina.formats.rafs.units import lay_out_v5, lay_out_v6
from lamina.formats.rafs.writer.options import RafsOptions
from lamina.images.conversion import ALL_LAYERS, ConvertOptions
from lamina.images.manifest import OCI_INDEX, Descriptor, Manifest, parse_manifest
from lamina.images.nydus import bootstrap_layer, image_bootstrap, open_bootstrap
from lamina.images.nydus_check import verify_nydus
from lamina.images.platform import parse_platform
from lamina.store import Store
from tests.erofs import Bytes, fsck, mounted_image
from tests.fixtures_command import Command
from tests.fixtures_registry import LocalRegistry
from tests.hard_image import NAME, chain, hard_image, load_image, tree
from tests.images import OCI_LAYER_GZIP, OCI_MANIFEST, Layer, digest, image, index
from tests.nydus import nydus_image
from tests.rafs import noise, sample
from tests.rafs_devices import filled
from tests.rafs_v6 import make_v6
from tests.trees import describe

pytest_plugins = ["tests.fixtures_registry", "tests.fixtures_command"]
pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.erofs]
TARGET = "registry.example/nydus:1"
FILES = {"d/": None, "d/one": noise(20_000), "d/two": b"two" * 9000, "three": b"3"}
RECORD = b'{"path":"d/two","manifestDigest":"","layerIndex":0}\n'


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
    content = store.images.content
    blobs, metas = {}, {}
    for number, (blob, layer) in enumerate(zip(bootstrap.blobs, manifest.layers[:-1], strict=True)):
        # The data is the layer itself, or what it refers to.
        place = Digest(layer.annotations.get(REF, layer.digest))
        assert place == f"sha256:{blob.id}"
        blobs[number] = content.path(place).read_bytes()
        if blob.features & BlobFeatures.SEPARATE:
            metas[number] = read_blob_meta(Bytes(content.path(layer.digest).read_bytes()), blob)
    layout = lay_out_v6(bootstrap, metas) if bootstrap.version == 6 else lay_out_v5(bootstrap)
    image = directory / "image"
    image.write_bytes(raw)
    if bootstrap.version == 5:
        with open(image, "wb") as out:
            devices = [Device(device.size // BLOCK) for device in layout.devices]
            write_image(to_tree(bootstrap, layout), out, devices=devices)
    paths = []
    for number, data in enumerate(filled(layout, bootstrap, blobs)):
        paths.append(directory / f"device{number}")
        paths[-1].write_bytes(data)
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
    with pytest.raises(InvalidArgument, match="use --snapshotter nydus"):
        store.unpack(TARGET, snapshotter="overlayfs")
    assert store.fsck(deep=True) == []


@pytest.mark.parametrize("version", [5, 6])
def test_chunks_of_a_dictionary_are_not_written_again(
    store: Store, tmp_path: Path, version: int
) -> None:
    load_image(store, "overlayfs", Layer.of({"a": noise(50_000), "b": b"b"}), keep=True)
    rafs = RafsOptions(version, chunk_size=4096)
    store.convert(NAME, TARGET, options=ConvertOptions(nydus=rafs))
    [old] = manifest_of(store, TARGET).layers[:-1]
    above = {"c": noise(50_000)[:8192] + b"new"}
    load_image(store, "overlayfs", Layer.of(above), ref="docker.io/library/c:1", keep=True)
    options = ConvertOptions(nydus=rafs, chunk_dict=TARGET)
    second = TARGET.replace(":1", ":2")
    converted = store.convert("docker.io/library/c:1", second, options=options)
    assert [(layer.chunks, layer.new_chunks) for layer in converted.nydus] == [
        (0, 0),
        (3, 1),
        (0, 0),
    ]
    manifest = manifest_of(store, second)
    first, new, bootstrap = manifest.layers
    assert first == old
    assert new.size < old.size
    assert json.loads(bootstrap.annotations[REFERENCE_BLOB_IDS]) == [old.digest[7:]]
    assert verify_nydus(store.images.content, manifest) == []
    image, devices = mountable(store, manifest, tmp_path)
    with mounted_image(image, tmp_path / "mnt", devices) as root:
        assert (root / "c").read_bytes() == above["c"]
    for wrong, said in (
        (replace(options, nydus=replace(rafs, chunk_size=8192)), "chunk size is 4096"),
        (replace(options, nydus=replace(rafs, compressor=Compressor.GZIP)), "compressor is ZSTD"),
        (replace(options, chunk_dict="registry.example/other:1"), "its blobs have to be where"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            store.convert("docker.io/library/c:1", second, options=wrong)


def test_what_makes_a_layer_lazy_is_no_file_of_the_image(store: Store) -> None:
    load_image(store, "overlayfs", Layer.of({"a": b"1" * 9000}), keep=True)
    store.convert(NAME, TARGET, options=ConvertOptions(prioritized={ALL_LAYERS: [b"a"]}))
    second = TARGET.replace(":1", ":2")
    rafs = RafsOptions(compressor=Compressor.GZIP)
    for source in (NAME, TARGET):
        store.convert(source, second, options=ConvertOptions(nydus=rafs))
        bootstrap = image_bootstrap(store.images.content, manifest_of(store, second))
        assert list(bootstrap.root.children) == [b"a"]
    third = ConvertOptions(nydus=rafs, oci_ref=True)
    store.convert(TARGET, second, options=third)
    bootstrap = image_bootstrap(store.images.content, manifest_of(store, second))
    assert list(bootstrap.root.children) == [b"a"]
    assert verify_nydus(store.images.content, manifest_of(store, second)) == []


def test_all_images_of_an_index_are_converted(store: Store) -> None:
    above = Layer.of({"d/": None, "d/again": FILES["d/one"]})
    images = [
        image(Layer.of(FILES), above, Layer.of({"arch": name.encode()}), architecture=name)
        for name in ("amd64", "arm64")
    ]
    documents = [each.manifest for each in images]
    for blob in (*images[0].blobs, *images[1].blobs, *documents, index(*images)):
        found = Descriptor(OCI_INDEX, Digest(digest(blob)), len(blob))
        store.images.content.put(blob, found)
    store.images.catalogue.put(NAME, found)
    options = ConvertOptions(nydus=RafsOptions(), all_platforms=True)
    converted = store.convert(NAME, TARGET, options=options)
    # The second layer of each has nothing of its own.
    assert [layer.target is None for layer in converted.nydus] == [False, True, False, False] * 2
    for name in ("amd64", "arm64"):
        made = store.images.select(converted.image, parse_platform(f"linux/{name}"))
        assert len(made.manifest.layers) == 3
        assert verify_nydus(store.images.content, made.manifest) == []
        assert [step.empty_layer for step in made.config.history] == [False, True, False, False]
    with pytest.raises(InvalidArgument, match="it is one already"):
        store.convert(TARGET, NAME, options=options)


def test_data_stays_in_the_layers_of_the_source(store: Store, tmp_path: Path) -> None:
    layers = [
        replace(layer, blob=packed(layer.blob), media_type=OCI_LAYER_GZIP)
        for layer in hard_image(sparse=False)
    ]
    load_image(store, "overlayfs", *layers, keep=True)
    expected = tree(store, "overlayfs", chain(store)[-1])
    rafs = RafsOptions(compressor=Compressor.GZIP, chunk_size=8192)
    options = ConvertOptions(nydus=rafs, oci_ref=True)
    target = NAME.replace(":1", ":nydus")
    store.convert(NAME, target, options=options)
    manifest = manifest_of(store, target)
    known = {layer.digest for layer in layers}
    assert all(layer.annotations[BLOB] == "true" for layer in manifest.layers[:-1])
    assert {layer.annotations[REF] for layer in manifest.layers[:-1]} <= known
    assert verify_nydus(store.images.content, manifest) == []
    image, devices = mountable(store, manifest, tmp_path)
    with mounted_image(image, tmp_path / "mnt", devices) as root:
        found = describe(root)
    assert {name: entry.content for name, entry in found.items()} == {
        name: entry.content for name, entry in expected.items()
    }
    with pytest.raises(InvalidArgument, match="its blobs have to be where"):
        store.convert(NAME, TARGET, options=options)
    with pytest.raises(InvalidArgument, match="no chunk of it can be read alone"):
        other = ConvertOptions(nydus=replace(rafs, compressor=Compressor.ZSTD), chunk_dict=target)
        store.convert(NAME, target, options=other)
    load_image(store, "overlayfs", *hard_image(sparse=False), keep=True)
    with pytest.raises(InvalidArgument, match="it has to be gzip"):
        store.convert(NAME, target, options=options)
    sparse = hard_image()[0]
    load_image(
        store,
        "overlayfs",
        replace(sparse, blob=packed(sparse.blob), media_type=OCI_LAYER_GZIP),
        keep=True,
    )
    with pytest.raises(NotImplementedHere, match="leave a sparse file in its gzip layer"):
        store.convert(NAME, target, options=options)


@pytest.mark.parametrize(("off", "sound"), [(-100, True), (1, False)])
def test_check_of_blobs_whose_size_is_another(store: Store, off: int, sound: bool) -> None:
    raw, blob = make_v6(sample())
    bootstrap = bytearray(raw)
    # As upstream's builder has it where the blob has a bootstrap, too, and as a blob cut short has.
    (table,) = struct.unpack_from("<Q", bootstrap, V6_EXTENDED_OFFSET + 8)
    struct.pack_into("<Q", bootstrap, table + 88, len(blob) + off)
    files = nydus_image(bytes(bootstrap), blob)
    for part in (*files.blobs, files.manifest):
        found = Descriptor(OCI_MANIFEST, Digest(digest(part)), len(part))
        store.images.content.put(part, found)
    store.images.catalogue.put(NAME, found)
    faults = verify_nydus(store.images.content, manifest_of(store, NAME))
    assert ["at least" in fault for fault in faults] == ([] if sound else [True])


def packed(tar: bytes) -> bytes:
    """Return a layer of several gzip members with several blocks each."""
    middle = len(tar) // 2
    return gzip.compress(tar[:middle], 1) + gzip.compress(tar[middle:], 9)


@pytest.mark.registry
def test_an_image_is_converted_checked_and_carried_by_the_command_line(
    command: Command, registry: LocalRegistry, tmp_path: Path
) -> None:
    files = image(Layer.of(FILES), Layer.of({"d/four": b"4", "d/again": FILES["d/one"]}))
    registry.push(files.manifest, files.blobs, "app", "1")
    source, target = f"{registry.host}/app:1", f"{registry.host}/app:nydus"
    command.run("images", "pull", "--plain-http", "--no-unpack", source)
    record = tmp_path / "record"
    record.write_bytes(RECORD)
    options = ("--nydus", "--chunk-size", "4KiB", "--compressor", "lz4_block")
    found = command.json(
        "images", "convert", *options, "--record-in", record, "--json", source, target
    )
    assert [(layer.get("Chunks"), layer.get("NewChunks")) for layer in found["Layers"]] == [
        (13, 10),
        (6, 1),
        (None, None),
    ]
    assert found["Layers"][0]["Prioritized"] == 1
    command.run("images", "push", "--plain-http", target)
    manifest = served_manifest(registry, "app", "nydus")
    assert [layer["mediaType"] for layer in manifest["layers"]] == [
        *[BLOB_MEDIA_TYPE] * 2,
        "application/vnd.oci.image.layer.v1.tar+gzip",
    ]
    assert [layer["annotations"] for layer in manifest["layers"]] == [
        *[{BLOB: "true"}] * 2,
        {BOOTSTRAP: "true", FS_VERSION: "6"},
    ]
    archive = tmp_path / "image.tar"
    command.run("images", "export", archive, target)
    command.run("images", "rm", source, target)
    command.run("images", "import", "--no-unpack", archive)
    # Nothing is unpacked, so that the image is not ready; but it is sound.
    [said] = json.loads(command.run("images", "check", "--deep", "--json", code=7).stdout)
    assert (said["Complete"], said["Faults"]) == (True, [])
    blob = command.root / f"io.containerd.content.v1.content/blobs/sha256/{id_of(manifest, 0)}"
    blob.chmod(0o600)
    with open(blob, "r+b") as file:
        file.write(b"damaged")
    error = command.run("images", "check", "--deep", code=13).stderr.decode()
    assert f"{target}: blob {id_of(manifest, 0)}: " in error
    assert "1 of 1 Nydus and overlaybd images are not sound" in error
    blob.unlink()
    error = command.run("images", "check", "--deep", code=7).stderr.decode()
    assert f"{target}: not checked: 1 of 3 layers are not here" in error


def test_what_makes_no_sense_is_refused(store: Store) -> None:
    load_image(store, "overlayfs", Layer.of({"a": b"a"}), keep=True)
    nydus = ConvertOptions(nydus=RafsOptions())
    store.convert(NAME, TARGET, options=nydus)
    other = TARGET.replace(":1", ":2")
    with pytest.raises(InvalidArgument, match="convert the image that it was made of"):
        store.convert(TARGET, other)
    with pytest.raises(InvalidArgument, match="use --snapshotter nydus"):
        store.unpack(TARGET, "overlayfs")
    store.images.catalogue.tag(NAME, other)
    with pytest.raises(InvalidArgument, match="it is no Nydus image: name one"):
        store.convert(NAME, TARGET, options=replace(nydus, chunk_dict=other))


def served_manifest(registry: LocalRegistry, repository: str, tag: str) -> dict[str, Any]:
    url = f"http://{registry.host}/v2/{repository}/manifests/{tag}"
    request = urllib.request.Request(url, headers={"Accept": OCI_MANIFEST})
    with urllib.request.urlopen(request) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def id_of(manifest: dict[str, Any], layer: int) -> str:
    return str(manifest["layers"][layer]["digest"]).removeprefix("sha256:")
