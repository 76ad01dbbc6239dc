"""Images converted to overlaybd images: mounted by the kernel, checked, pushed, exported."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from lamina.core.digest import Digest
from lamina.errors import DigestMismatch, InvalidArgument, NotFound, ResourceExhausted
from lamina.formats.lsmt.layout import NO_UUID
from lamina.formats.lsmt.reader import open_layer
from lamina.formats.lsmt.stack import Stack, export_image
from lamina.formats.overlaybd.annotations import (
    ACCELERATION,
    BLOB_DIGEST,
    BLOB_SIZE,
    FS_TYPE,
    PREFIX,
    VERSION,
)
from lamina.formats.rafs.writer.options import RafsOptions
from lamina.formats.zfile.envelope import HEADER_SIZE
from lamina.formats.zfile.layout import Algorithm
from lamina.formats.zfile.reader import ZFile
from lamina.formats.zfile.writer import ZFileOptions
from lamina.images.blob_source import FileSource
from lamina.images.conversion import ALL_LAYERS, ConvertOptions
from lamina.images.conversion_overlaybd import OverlaybdOptions
from lamina.images.manifest import OCI_INDEX, OCI_LAYER, Descriptor
from lamina.images.overlaybd import device_layers
from lamina.images.overlaybd_check import verify_overlaybd
from lamina.images.platform import default_platform, parse_platform
from lamina.layer.limits import LayerLimits
from lamina.store import Store
from tests.fixtures_command import Command
from tests.fixtures_registry import LocalRegistry
from tests.hard_image import NAME, chain, hard_image, load_image, tree
from tests.images import Layer, digest, image, index, tar
from tests.kernel.test_image_conversion_nydus import manifest_of, served_manifest
from tests.rafs import noise
from tests.trees import Entry, describe

pytest_plugins = ["tests.fixtures_registry", "tests.fixtures_command"]
pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.loop]
TARGET = "registry.example/obd:1"
SMALL = OverlaybdOptions(virtual_size=64 << 20)
FILES = {"d/": None, "d/one": noise(20_000), "d/two": b"two" * 9000, "three": b"3"}
RECORD = b'{"path":"d/two","manifestDigest":"","layerIndex":0}\n'
NATIVE = {FS_TYPE: "ext4", VERSION: "0.1.0"}


@pytest.fixture
def store(root_dir: Path) -> Iterator[Store]:
    with Store(root_dir) as opened:
        yield opened


@contextmanager
def stack_of(store: Store, layers: list[Descriptor]) -> Iterator[Stack]:
    with ExitStack() as opened:
        files = [opened.enter_context(store.images.content.open(each.digest)) for each in layers]
        yield Stack([open_layer(FileSource(file)) for file in files])


@contextmanager
def mounted(store: Store, layers: list[Descriptor], directory: Path) -> Iterator[Path]:
    """Show the filesystem of some layers, which e2fsck has nothing to say against."""
    device = directory / "device"
    with stack_of(store, layers) as stack, device.open("wb") as out:
        export_image(stack, out)
    done = subprocess.run(("e2fsck", "-fn", device), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    at = directory / "mnt"
    at.mkdir(exist_ok=True)
    subprocess.run(("mount", "-o", "loop,ro", device, at), check=True)
    try:
        yield at
    finally:
        subprocess.run(("umount", at), check=True)
        device.unlink()


def found_of(store: Store, layers: list[Descriptor], directory: Path) -> dict[str, Entry]:
    with mounted(store, layers, directory) as root:
        return describe(root)


@pytest.mark.parametrize(
    "options",
    [
        OverlaybdOptions(),
        OverlaybdOptions(ZFileOptions(Algorithm.ZSTD, 65536), 100 << 20),
    ],
    ids=["lz4", "zstd"],
)
def test_the_kernel_shows_what_the_layers_unpacked_have(
    store: Store, tmp_path: Path, options: OverlaybdOptions
) -> None:
    started = time.time_ns()
    load_image(store, "overlayfs", *hard_image(), keep=True)
    chain_ids = chain(store)
    expected = [tree(store, "overlayfs", chain_id) for chain_id in chain_ids]
    ended = time.time_ns()
    converted = store.convert(NAME, TARGET, options=ConvertOptions(overlaybd=options))
    layers = list(manifest_of(store, TARGET).layers)
    assert [layer.target for layer in converted.overlaybd] == layers
    assert [layer.warnings for layer in converted.overlaybd] == [()] * 4
    for number, layer in enumerate(layers):
        said = {BLOB_DIGEST: layer.digest, BLOB_SIZE: str(layer.size), **NATIVE}
        assert (layer.media_type, layer.annotations) == (OCI_LAYER, said)
        found = found_of(store, layers[: number + 1], tmp_path)
        for name, entry in expected[number].items():
            # Of directories that no layer describes, unpacking has its own time.
            if entry.mode.startswith("d") and (started < entry.mtime_ns < ended or name == "."):
                found[name] = found[name]._replace(mtime_ns=entry.mtime_ns)
        assert found == expected[number]
    uuids = [UUID(chain_id.removeprefix("sha256:")[:32]) for chain_id in chain_ids]
    with stack_of(store, layers) as stack:
        assert [layer.about.uuid for layer in stack.layers] == uuids
        assert [layer.about.parent_uuid for layer in stack.layers] == [NO_UUID, *uuids[:-1]]
        assert {layer.about.virtual_size for layer in stack.layers} == {options.virtual_size}
        for zfile in (layer.source for layer in stack.layers):
            assert isinstance(zfile, ZFile)
            assert (zfile.algorithm, zfile.block_size) == (
                options.zfile.algorithm,
                options.zfile.block_size,
            )
            assert zfile.has_crc
    assert verify_overlaybd(store.images.content, manifest_of(store, TARGET)) == []
    made = store.images.select(converted.image, parse_platform("linux"))
    assert made.config.rootfs.diff_ids == tuple(layer.digest for layer in layers)
    assert store.fsck(deep=True) == []


def test_equal_sources_and_options_give_equal_bytes(store: Store) -> None:
    load_image(store, "overlayfs", *hard_image(), keep=True)
    options = ConvertOptions(overlaybd=SMALL, prioritized={ALL_LAYERS: [b"bin"]})
    first = store.convert(NAME, TARGET, options=options)
    second = store.convert(NAME, TARGET.replace(":1", ":2"), options=options)
    assert second.image.target == first.image.target
    others = (
        replace(SMALL, zfile=ZFileOptions(block_size=8192)),
        replace(SMALL, virtual_size=1 << 30),
    )
    found = [store.convert(NAME, TARGET, options=replace(options, overlaybd=o)) for o in others]
    assert len({made.image.target.digest for made in (first, *found)}) == 3


def test_a_layer_that_changes_nothing_is_a_layer_all_the_same(store: Store, tmp_path: Path) -> None:
    twice = Layer.of({"d/": None, "d/one": b"1" * 9000})
    load_image(
        store, "overlayfs", twice, Layer.of({}), twice, Layer.of({".wh.none": b""}), keep=True
    )
    store.convert(NAME, TARGET, options=ConvertOptions(overlaybd=SMALL))
    layers = list(manifest_of(store, TARGET).layers)
    with stack_of(store, layers) as stack:
        assert all(layer.mappings for layer in stack.layers)
    with mounted(store, layers, tmp_path) as root:
        assert (root / "d/one").read_bytes() == b"1" * 9000
    assert verify_overlaybd(store.images.content, manifest_of(store, TARGET)) == []


def test_what_makes_a_layer_lazy_is_no_file_of_the_image(store: Store, tmp_path: Path) -> None:
    load_image(store, "overlayfs", Layer.of({"a": b"1" * 9000}), keep=True)
    lazy = TARGET.replace(":1", ":lazy")
    store.convert(NAME, lazy, options=ConvertOptions(prioritized={ALL_LAYERS: [b"a"]}))
    store.convert(lazy, TARGET, options=ConvertOptions(overlaybd=SMALL))
    [layer] = manifest_of(store, TARGET).layers
    assert all(name.startswith(PREFIX) for name in layer.annotations)
    with mounted(store, [layer], tmp_path) as root:
        assert os.listdir(root) == ["a"]


def test_what_is_wanted_first_lies_first_and_is_to_be_prefetched(store: Store) -> None:
    base = {f"f{number}": noise(40_000, b"%d" % number) for number in range(8)}
    above = {"g0": noise(40_000, b"10"), "g1": noise(40_000, b"11")}
    load_image(store, "overlayfs", Layer.of(base), Layer.of(above), keep=True)
    source = manifest_of(store, NAME)
    prioritized: dict[str, list[bytes]] = {
        source.layers[0].digest: [b"f6"],
        source.layers[1].digest: [b"g1"],
    }
    options = ConvertOptions(overlaybd=SMALL, prioritized=prioritized)
    converted = store.convert(NAME, TARGET, options=options)
    *layers, trace = manifest_of(store, TARGET).layers
    assert [made.prioritized for made in converted.overlaybd] == [1, 1, 2]
    said = {BLOB_DIGEST: trace.digest, BLOB_SIZE: str(trace.size), ACCELERATION: "yes", **NATIVE}
    assert (trace.media_type, trace.annotations) == (OCI_LAYER, said)
    assert b"\n".join([b"/f6", b"/g1"]) in store.images.content.path(trace.digest).read_bytes()
    assert device_layers(manifest_of(store, TARGET)) == layers
    files = {**base, **above}
    with stack_of(store, layers) as stack:
        device = stack.read_at(0, stack.size)
    places = {name: device.index(data) for name, data in files.items()}
    assert places["f6"] == min(places[name] for name in base)
    assert places["g1"] < places["g0"]
    assert verify_overlaybd(store.images.content, manifest_of(store, TARGET)) == []
    # An image that nothing of is wanted first, or can be told, has no such layer.
    unsaid = ("1 files are not prefetched: a list cannot have their names",)
    nothing: list[tuple[dict[str, list[bytes]], list[tuple[str, ...]]]] = [
        ({}, []),
        ({ALL_LAYERS: [b"a\nb"]}, [unsaid]),
    ]
    for paths, told in nothing:
        converted = store.convert(NAME, TARGET, options=replace(options, prioritized=paths))
        assert len(manifest_of(store, TARGET).layers) == 2
        assert [made.warnings for made in converted.overlaybd if made.warnings] == told


def test_all_images_of_an_index_are_converted(store: Store) -> None:
    images = [
        image(Layer.of(FILES), Layer.of({"arch": name.encode()}), architecture=name)
        for name in ("amd64", "arm64")
    ]
    documents = [each.manifest for each in images]
    for blob in (*images[0].blobs, *images[1].blobs, *documents, index(*images)):
        found = Descriptor(OCI_INDEX, Digest(digest(blob)), len(blob))
        store.images.content.put(blob, found)
    store.images.catalogue.put(NAME, found)
    options = ConvertOptions(overlaybd=SMALL, all_platforms=True)
    converted = store.convert(NAME, TARGET, options=options)
    assert len(converted.overlaybd) == 4
    made = [
        store.images.select(converted.image, parse_platform(f"linux/{name}")).manifest
        for name in ("amd64", "arm64")
    ]
    assert made[0].layers[0] == made[1].layers[0]
    assert made[0].layers[1] != made[1].layers[1]
    assert [verify_overlaybd(store.images.content, each) for each in made] == [[], []]


def test_what_cannot_be_is_refused_by_name(store: Store) -> None:
    load_image(store, "overlayfs", Layer.of({"a": b"a"}), keep=True)
    overlaybd = ConvertOptions(overlaybd=SMALL)
    nydus = ConvertOptions(nydus=RafsOptions())
    store.convert(NAME, TARGET, options=overlaybd)
    rafs = TARGET.replace(":1", ":nydus")
    store.convert(NAME, rafs, options=nydus)
    other = TARGET.replace(":1", ":2")
    for source, options, said in (
        (TARGET, overlaybd, "it is one already"),
        (TARGET, nydus, "it is an overlaybd image"),
        (TARGET, ConvertOptions(), "it is overlaybd's, without names"),
        (rafs, overlaybd, "it is a Nydus image"),
        (NAME, replace(overlaybd, nydus=RafsOptions()), "choose one of them"),
        (NAME, replace(overlaybd, chunk_dict=rafs), "only Nydus images have them"),
        (NAME, replace(overlaybd, oci_ref=True), "only Nydus images have them"),
        (NAME, sized(1 << 19), "from 1 MiB to 16 TiB"),
        (NAME, sized(1 << 45), "from 1 MiB to 16 TiB"),
        (NAME, sized((1 << 30) + 512), "whole blocks of 4096"),
        (NAME, blocks_of(2048), "a power of two from 4096 to 65536"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            store.convert(source, other, options=options)
    with pytest.raises(InvalidArgument, match="use --snapshotter overlaybd"):
        store.unpack(TARGET, "overlayfs")
    load_image(store, "overlayfs", keep=True, ref=other)
    with pytest.raises(InvalidArgument, match="an image of 0 layers"):
        store.convert(other, TARGET, options=overlaybd)
    foreign = Layer.of({"a": b"a"})
    kept = replace(
        foreign, media_type="application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    )
    load_image(store, "overlayfs", kept, keep=True, ref=other)
    with pytest.raises(InvalidArgument, match="must not be distributed"):
        store.convert(other, TARGET, options=overlaybd)
    made = store.images.select(store.image(TARGET), default_platform()).manifest
    store.images.content.delete(made.layers[0].digest)
    with pytest.raises(InvalidArgument, match="it is one already"):  # as after a lazy pull
        store.convert(TARGET, other, options=overlaybd)


def sized(size: int) -> ConvertOptions:
    return ConvertOptions(overlaybd=OverlaybdOptions(virtual_size=size))


def blocks_of(size: int) -> ConvertOptions:
    return ConvertOptions(overlaybd=OverlaybdOptions(ZFileOptions(block_size=size)))


def left(store: Store) -> list[Path]:
    """Return what lies in the content store beside its blobs."""
    root = store.images.content.root
    found = [path for path in root.rglob("*") if root / "blobs" not in path.parents]
    return [path for path in found if path not in {root / "blobs", root / "ingest"}]


def test_failures_leave_nothing_behind(store: Store, tmp_path: Path) -> None:
    load_image(store, "overlayfs", Layer.of({"a": noise(3 << 20)}), keep=True)
    blobs = {info.digest for info in store.images.content.walk()}
    with pytest.raises(ResourceExhausted) as full:
        store.convert(NAME, TARGET, options=sized(2 << 20))
    assert "\n" not in str(full.value)
    limits = LayerLimits(max_entries=0)
    with pytest.raises(ResourceExhausted, match="more than 0 entries"):
        store.convert(NAME, TARGET, options=replace(sized(1 << 30), limits=limits))
    plain = tar({"a": b"a"})
    lying = image(Layer(plain, digest(b"other"), OCI_LAYER))
    for blob in (*lying.blobs, lying.manifest):
        found = Descriptor(
            "application/vnd.oci.image.manifest.v1+json", Digest(digest(blob)), len(blob)
        )
        store.images.content.put(blob, found)
    store.images.catalogue.put("docker.io/library/lies:1", found)
    with pytest.raises(DigestMismatch):
        store.convert("docker.io/library/lies:1", TARGET, options=sized(2 << 20))
    with pytest.raises(NotFound):
        store.image(TARGET)
    assert left(store) == []
    assert blobs <= {info.digest for info in store.images.content.walk()}


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=24m", "none", disk), check=True)
    try:
        with Store(disk / "root") as store:
            load_image(store, "native", Layer.of({"a": noise(8 << 20)}), keep=True)
            with pytest.raises(ResourceExhausted) as full:
                store.convert(NAME, TARGET, options=ConvertOptions(overlaybd=SMALL))
            assert "free some space on its disk" in str(full.value)
            assert str(store.images.content.root) in str(full.value)
            assert "\n" not in str(full.value)
            assert left(store) == []
    finally:
        subprocess.run(("umount", disk), check=True)


@pytest.mark.registry
def test_an_image_is_converted_checked_and_carried_by_the_command_line(
    command: Command, registry: LocalRegistry, tmp_path: Path
) -> None:
    files = image(Layer.of(FILES), Layer.of({"d/four": b"4", "d/again": FILES["d/one"]}))
    registry.push(files.manifest, files.blobs, "app", "1")
    source, target = f"{registry.host}/app:1", f"{registry.host}/app:obd"
    command.run("images", "pull", "--plain-http", "--no-unpack", source)
    record = tmp_path / "record"
    record.write_bytes(RECORD)
    options = ("--overlaybd", "--compressor", "zstd", "--bs", "16", "--vsize", "2")
    found = command.json(
        "images", "convert", *options, "--record-in", record, "--json", source, target
    )
    assert [layer["Prioritized"] for layer in found["Layers"]] == [1, 0, 1]
    assert [layer["Source"] for layer in found["Layers"][:2]] == [
        digest(layer.blob) for layer in files.layers
    ]
    assert "Start" not in found
    command.run("images", "push", "--plain-http", target)
    manifest = served_manifest(registry, "app", "obd")
    assert [layer["mediaType"] for layer in manifest["layers"]] == [OCI_LAYER] * 3
    assert [layer["annotations"].get(ACCELERATION) for layer in manifest["layers"]] == [
        None,
        None,
        "yes",
    ]
    archive = tmp_path / "image.tar"
    command.run("images", "export", archive, target)
    command.run("images", "rm", source, target)
    command.run("images", "import", "--no-unpack", archive)
    [said] = json.loads(command.run("images", "check", "--deep", "--json", code=7).stdout)
    assert (said["Complete"], said["Faults"]) == (True, [])
    [said] = json.loads(command.run("images", "check", "--json", code=7).stdout)
    assert "Faults" not in said
    layer = manifest["layers"][0]["digest"]
    blob = command.root / f"io.containerd.content.v1.content/blobs/{layer.replace(':', '/')}"
    blob.chmod(0o600)
    with open(blob, "r+b") as file:
        file.seek(3000)
        [byte] = file.read(1)
        file.seek(3000)
        file.write(bytes([byte ^ 1]))
    error = command.run("images", "check", "--deep", code=13).stderr.decode()
    assert f"{target}: layer {layer}: expected its digest, got sha256:" in error
    assert "with CRC-32C" in error
    assert "1 of 1 Nydus and overlaybd images are not sound" in error
    command.run("images", "check", code=7)
    with open(blob, "r+b") as file:
        file.seek(HEADER_SIZE + 40)
        file.write(b"damaged")
    # What makes the device is looked at without being asked for.
    done = command.run("images", "check", "--json", code=13)
    assert f"{target}: layer {layer}: read ZFile" in done.stderr.decode()
    assert len(json.loads(done.stdout)[0]["Faults"]) == 1
    blob.unlink()
    error = command.run("images", "check", "--deep", code=7).stderr.decode()
    assert f"{target}: not checked: 1 of 3 layers are not here" in error


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--overlaybd", "--nydus"), "--nydus and --overlaybd"),
        (("--overlaybd", "--chunk-dict", "x"), "--chunk-dict needs --nydus"),
        (("--overlaybd", "--oci-ref"), "--oci-ref needs --nydus"),
        (("--overlaybd", "--fs-version", "6"), "--fs-version needs --nydus"),
        (("--overlaybd", "--chunk-size", "1MiB"), "--chunk-size cannot be used with --overlaybd"),
        (("--overlaybd", "--compressor", "gzip"), "--overlaybd takes --compressor lz4 or zstd"),
        (("--overlaybd", "--bs", "5"), "'5' is not one of"),
        (("--overlaybd", "--vsize", "0"), "0 is not in the range"),
        (("--nydus", "--compressor", "lz4"), "--compressor lz4 needs --overlaybd"),
        (("--bs", "4"), "--bs needs --overlaybd"),
        (("--nydus", "--vsize", "4"), "--vsize needs --overlaybd"),
        (("--compressor", "zstd"), "--compressor needs --nydus or --overlaybd"),
    ],
)
def test_options_that_make_no_sense(command: Command, options: tuple[str, ...], said: str) -> None:
    assert (
        said in command.run("images", "convert", *options, "a:1", "b:1", code=None).stderr.decode()
    )
