"""The nydus snapshotter: images of a real registry that are used before they are fetched."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lamina.core.labels import REMOTE
from lamina.core.mount import Mount
from lamina.core.snapshot import Info, Kind
from lamina.errors import FailedPrecondition, LaminaError, NotImplementedHere
from lamina.formats.rafs.annotations import BOOTSTRAP, ENCRYPTED, FS_VERSION, REF
from lamina.formats.rafs.flags import Compressor
from lamina.formats.rafs.writer.options import RafsOptions
from lamina.images.conversion import ConvertOptions
from lamina.lazy.path_patterns import read_patterns
from lamina.lazy_images import LazyImages
from lamina.linux.probes import erofs_files
from lamina.mount import temp_mount, unmount_recursive
from lamina.snapshotters.lazy_overlay import GATE_LABEL
from lamina.snapshotters.lazy_tally import LazyTally
from lamina.store import Store
from tests.archives import Archive
from tests.faulty_registry import faulty_registry
from tests.fixtures_containers import Machine, wait_for
from tests.fixtures_registry import LocalRegistry, running_registry
from tests.fixtures_stargz import GATES, end_worker, opening
from tests.hard_image import chain, hard_image, layer, load_image, tree
from tests.images import OCI_LAYER_GZIP, ImageFiles, Layer, digest
from tests.kernel.test_rafs import seen, without_steering
from tests.lazy_looking import Looking, read_all
from tests.nydus import (
    annotated_image,
    blob_layer,
    bootstrap_layer,
    nydus_image,
    plain_layer,
    push,
    tree_of,
)
from tests.rafs import CHUNK, described, noise, sample
from tests.rafs_blobs import BLAKE3, GZIP, LZ4, NONE, SHA256, ZSTD
from tests.rafs_v5 import make_v5
from tests.rafs_v6 import make_v6
from tests.rafs_zran import make_zran

pytest_plugins = ["tests.fixtures_registry"]
pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.erofs, pytest.mark.registry]

FILES = {
    "a": b"first",
    "big": noise(700_000, b"1"),
    "dir/deep/file": noise(90_000, b"2"),
    "empty": b"",
    "text": b"text " * 50_000,
}
MAKERS: dict[int, Callable[..., tuple[bytes, bytes]]] = {5: make_v5, 6: make_v6}
Open = Callable[..., Store]


@pytest.fixture
def open_store(root_dir: Path, tmp_path: Path) -> Iterator[Open]:
    with opening(root_dir, tmp_path, "nydus") as make:
        yield make


def made(version: int, **options: int) -> ImageFiles:
    bootstrap, blob = MAKERS[version](tree_of(FILES), **options)
    return nydus_image(bootstrap, blob, version=str(version))


looks = Looking("nydus")
pull, worker, fetched, looking = looks.pull, looks.worker, looks.fetched, looks.at


@pytest.mark.parametrize("version", [5, 6])
@pytest.mark.parametrize("gate", GATES)
def test_pull_fetches_no_blob_and_reads_are_right(
    open_store: Open, registry: LocalRegistry, tmp_path: Path, gate: str, version: int
) -> None:
    store = open_store(gate)
    files = made(version, compressor=ZSTD)
    ref = push(registry, files)
    pull(store, ref)
    assert not store.images.content.has(files.layers[0].digest)  # type: ignore[arg-type]
    engine = store.snapshotter("nydus")
    assert sorted(REMOTE in info.labels for info in engine.walk()) == [False, True]
    assert fetched(store) == 0
    mounts = engine.prepare("container", store.launch(ref).chain_id)
    with temp_mount(mounts, dir=tmp_path) as root:
        assert (root / "a").stat().st_size == 5
        assert fetched(store) == 0
        assert (root / "a").read_bytes() == b"first"
        assert 0 < fetched(store) < 500_000
        (root / "a").write_text("changed")
        assert (root / "dir/deep/file").read_bytes() == FILES["dir/deep/file"]
    with looking(store, ref, tmp_path) as root:
        assert read_all(root) == FILES
    assert store.fsck() == []


@pytest.mark.parametrize(
    ("version", "options"),
    [
        (5, {"compressor": LZ4, "digester": BLAKE3}),
        (5, {"compressor": GZIP, "digester": SHA256}),
        (6, {"compressor": NONE, "digester": SHA256}),
        (6, {"compressor": LZ4, "digester": BLAKE3, "batch": 16384}),
        (6, {"compressor": GZIP, "chunk_table": False, "ci_compressor": ZSTD}),
    ],
)
def test_each_form_is_the_tree_that_it_was_made_of(
    open_store: Open,
    registry: LocalRegistry,
    tmp_path: Path,
    version: int,
    options: dict[str, int],
) -> None:
    store = open_store()
    bootstrap, blob = MAKERS[version](sample(), **options)
    ref = push(registry, nydus_image(bootstrap, blob, version=str(version)))
    pull(store, ref)
    with looking(store, ref, tmp_path) as root:
        assert seen(root) == described(without_steering(sample()))


@pytest.mark.parametrize(("version", "refers"), [(5, False), (6, False), (6, True)])
def test_converted_image_is_what_its_layers_have(
    open_store: Open, registry: LocalRegistry, version: int, refers: bool
) -> None:
    store = open_store()
    layers = hard_image(sparse=False)
    if refers:
        layers = tuple(map(gzipped, layers))
    source, ref = f"{registry.host}/hard:1", f"{registry.host}/hard:nydus"
    started = time.time_ns()
    load_image(store, "overlayfs", *layers, ref=source, keep=True)
    expected = tree(store, "overlayfs", chain(store, source)[-1])
    ended = time.time_ns()
    store.push(source, plain_http=True)
    compressor = Compressor.GZIP if refers else Compressor.ZSTD
    rafs = RafsOptions(version, compressor=compressor, chunk_size=4096)
    options = ConvertOptions(nydus=rafs, oci_ref=refers)
    store.convert(source, ref, options=options)
    store.push(ref, plain_http=True)
    store.remove_image(ref)
    pull(store, ref)
    shown = LazyImages(store, "nydus").layers(ref)
    assert len(shown) > 1
    assert not refers or {one.digest for one in shown} <= {layer.digest for layer in layers}
    found = tree(store, "nydus", chain(store, ref)[-1])
    for name, entry in expected.items():
        # Of directories that no layer describes, unpacking has its own time, and so has its root.
        if entry.mode.startswith("d") and (started < entry.mtime_ns < ended or name == "."):
            found[name] = found[name]._replace(mtime_ns=entry.mtime_ns)
    assert found == expected


def gzipped(layer: Layer) -> Layer:
    return replace(layer, blob=gzip.compress(layer.blob), media_type=OCI_LAYER_GZIP)


@pytest.mark.parametrize("gate", GATES)
def test_worker_is_killed_and_the_registry_is_gone(
    open_store: Open, tmp_path: Path, gate: str
) -> None:
    store = open_store(gate, more="fetching_timeout_sec = 3\n")
    with running_registry(tmp_path / "registry") as registry:
        ref = push(registry, made(6, compressor=ZSTD))
        pull(store, ref)
        with looking(store, ref, tmp_path) as root:
            os.kill(worker(store).status().pid, signal.SIGKILL)
            assert (root / "a").read_bytes() == FILES["a"]
    with looking(store, ref, tmp_path) as root:
        assert (root / "a").read_bytes() == FILES["a"]
        with pytest.raises(OSError, match="Input/output error"):
            (root / "big").read_bytes()
    log = (store.snapshotter("nydus").root / "lazy/worker.log").read_text()
    assert registry.host in log


def test_everything_is_there_after_a_restart(
    open_store: Open, tmp_path: Path, root_dir: Path
) -> None:
    store = open_store("fuse")
    with running_registry(tmp_path / "registry") as registry:
        ref = push(registry, made(5, compressor=LZ4))
        pull(store, ref)
        with looking(store, ref, tmp_path) as root:
            assert read_all(root) == FILES
    engine = store.snapshotter("nydus")
    engine.prepare("container", store.launch(ref).chain_id)
    unmount_recursive(root_dir)
    end_worker(root_dir)
    again = open_store("fuse").snapshotter("nydus")
    with temp_mount(again.mounts("container"), dir=tmp_path) as root:
        assert read_all(root) == FILES


@pytest.mark.parametrize("gate", GATES)
def test_complete_images_need_nobody(
    open_store: Open, tmp_path: Path, root_dir: Path, gate: str
) -> None:
    store = open_store(gate, quiet=False)
    with running_registry(tmp_path / "registry") as registry:
        ref = push(registry, made(6, compressor=LZ4))
        pull(store, ref)
        images = LazyImages(store, "nydus")
        with looking(store, ref, tmp_path) as root:
            (root / "dir/deep/file").read_bytes()
        [line] = trace = images.trace(ref)
        assert line["layer"] == images.layers(ref)[0].digest
        images.prefetch_trace(ref, trace)
        wait_for(lambda: images.layers(ref)[0].state == "complete", seconds=30)
        images.wait(ref, 30)
    assert [*filter(None, map(gate_of, store.snapshotter("nydus").walk()))] == [gate]
    with looking(store, ref, tmp_path) as root:
        end_worker(root_dir)
        assert read_all(root) == FILES
    assert store.fsck() == []


def gate_of(info: Info) -> str:
    return info.labels.get(GATE_LABEL, "")


@pytest.mark.parametrize("gate", GATES)
def test_gzip_layer_is_read_from_the_middle_on(
    open_store: Open, registry: LocalRegistry, tmp_path: Path, gate: str
) -> None:
    store = open_store(gate)
    bootstrap, meta, layer = make_zran(tree_of(FILES))
    blob, said = blob_layer(meta)
    original = digest(layer)
    files = annotated_image((blob, {**said, REF: original}), bootstrap_layer(bootstrap))
    registry.push_blob(layer, "test")
    ref = push(registry, files)
    pull(store, ref)
    with looking(store, ref, tmp_path) as root:
        assert (root / "a").read_bytes() == FILES["a"]
        [shown] = LazyImages(store, "nydus").layers(ref)
        assert shown.digest == original
        assert 0 < shown.cost.fetched_bytes < len(layer) / 2
        os.kill(worker(store).status().pid, signal.SIGKILL)
        assert read_all(root) == FILES


def test_layers_on_a_nydus_image_are_unpacked(
    open_store: Open, registry: LocalRegistry, tmp_path: Path
) -> None:
    store = open_store()
    bootstrap, blob = make_v6(tree_of(FILES), compressor=ZSTD)
    above = plain_layer({"dir/": None, "dir/new": b"new", ".wh.text": b""})
    files = annotated_image(blob_layer(blob), bootstrap_layer(bootstrap), above)
    ref = push(registry, files)
    pull(store, ref)
    without_text = {path: data for path, data in FILES.items() if path != "text"}
    with looking(store, ref, tmp_path) as root:
        assert read_all(root) == without_text | {"dir/new": b"new"}
    engine = store.snapshotter("nydus")
    with temp_mount(engine.prepare("container", store.launch(ref).chain_id), dir=tmp_path) as root:
        (root / "a").write_text("changed")
    engine.commit("committed", "container")
    with temp_mount(engine.view("look", "committed"), dir=tmp_path, read_only=True) as root:
        assert read_all(root) == without_text | {"dir/new": b"new", "a": b"changed"}


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({BOOTSTRAP: "true", FS_VERSION: "7"}, 'fs-version "7"'),
        ({BOOTSTRAP: "true", FS_VERSION: "6", ENCRYPTED: "true"}, "it is encrypted"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    open_store: Open, registry: LocalRegistry, annotations: dict[str, str], said: str
) -> None:
    store = open_store()
    bootstrap, blob = make_v6(tree_of({"a": b"a"}))
    layer, _ = bootstrap_layer(bootstrap)
    ref = push(registry, annotated_image(blob_layer(blob), (layer, annotations)))
    with pytest.raises(NotImplementedHere, match=said):
        pull(store, ref)
    assert [info.kind for info in store.snapshotter("nydus").walk()] == [Kind.COMMITTED]


def test_bootstraps_that_cannot_be_served_leave_nothing(
    open_store: Open, registry: LocalRegistry
) -> None:
    store = open_store()
    bootstrap, blob = make_v6(tree_of({"a": b"a"}))
    tarfs, tar = make_v6(tree_of({"a": b"a"}), tar=True)
    elsewhere = bootstrap_layer(bootstrap, name="image/other")
    link = archived(Archive().symlink("image", "/etc"))
    pipe = archived(Archive().entry("image/image.boot", tarfile.FIFOTYPE))
    for number, (layers, said) in enumerate(
        (
            ((blob_layer(tar), bootstrap_layer(tarfs)), "tarfs"),
            ((blob_layer(blob), bootstrap_layer(b"none")), "a RAFS bootstrap"),
            ((blob_layer(blob), elsewhere), "find the bootstrap"),
            ((blob_layer(blob), link), "symbolic links"),
            ((blob_layer(blob), pipe), "something else"),
            ((plain_layer({"b": b"b"}), bootstrap_layer(bootstrap)), "is no Nydus blob"),
        )
    ):
        ref = push(registry, annotated_image(*layers), f"{number}")
        with pytest.raises(LaminaError, match=said):
            pull(store, ref)
    engine = store.snapshotter("nydus")
    assert {info.kind for info in engine.walk()} == {Kind.COMMITTED}
    assert [*engine.root.glob("snapshots/*/layer.*")] == [*engine.root.glob("blobs/*")] == []
    assert str(engine.root) not in Path("/proc/self/mountinfo").read_text()


def archived(archive: Archive) -> tuple[Layer, dict[str, str]]:
    return layer(archive), {BOOTSTRAP: "true", FS_VERSION: "6"}


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (None, "push all blobs of the image"),
        (5, "chunks in the 5 bytes of blob"),
        (1 << 40, "and 1099511627776 in its image"),
    ],
)
def test_what_a_registry_does_not_give_fails_the_pull(
    open_store: Open, size: int | None, said: str
) -> None:
    store = open_store()
    files = made(6)
    with faulty_registry() as registry:
        for blob in files.blobs:
            if size or digest(blob) != files.layers[0].digest:
                registry.add_blob(blob)
        manifest = json.loads(files.manifest)
        manifest["layers"][0]["size"] = size or manifest["layers"][0]["size"]
        registry.add_manifest("1", json.dumps(manifest).encode())
        with pytest.raises(LaminaError, match=said):
            pull(store, f"{registry.host}/test:1")
    engine = store.snapshotter("nydus")
    assert {info.kind for info in engine.walk()} == {Kind.COMMITTED}
    assert [*engine.root.glob("blobs/*")] == []


def test_disk_whose_files_the_kernel_does_not_mount_is_named(
    open_store: Open, registry: LocalRegistry, root_dir: Path
) -> None:
    ref = push(registry, made(6))
    with temp_mount([Mount("tmpfs", "tmpfs")], dir=root_dir.parent) as disk:
        with Store(disk) as store:
            with pytest.raises(FailedPrecondition, match="ext4, xfs or btrfs"):
                pull(store, ref)
            assert [*store.snapshotter("nydus").root.glob("blobs/*")] == []
        assert "Block device" in (erofs_files(disk) or "")
        unmount_recursive(disk / "io.containerd.snapshotter.v1.nydus")
        end_worker(disk)


def test_wrong_bytes_fail(open_store: Open, tmp_path: Path) -> None:
    store = open_store(more="fetching_timeout_sec = 3\n")
    with running_registry(tmp_path / "registry") as registry:
        files = made(6, compressor=NONE)
        ref = push(registry, files)
        pull(store, ref)
        [stored] = (tmp_path / "registry").rglob(f"{files.layers[0].digest[7:]}/data")
        good = stored.read_bytes()
        at = good.index(FILES["big"][300_000:300_064])
        stored.write_bytes(good[:at] + b"x" + good[at + 1 :])
        with looking(store, ref, tmp_path) as root:
            with pytest.raises(OSError, match="Input/output error"):
                (root / "big").read_bytes()
            assert (root / "dir/deep/file").read_bytes() == FILES["dir/deep/file"]
    log = (store.snapshotter("nydus").root / "lazy/worker.log").read_text()
    assert "expected blake3:" in log


def test_images_share_caches_and_remove_them_with_the_last(
    open_store: Open, registry: LocalRegistry, tmp_path: Path
) -> None:
    store = open_store()
    bootstrap, blob = make_v6(tree_of(FILES), compressor=ZSTD)
    refs = [push(registry, nydus_image(bootstrap, blob))]
    other = annotated_image(blob_layer(blob), bootstrap_layer(bootstrap, name="image.boot"))
    refs.append(push(registry, other, "2"))
    for ref in refs:
        pull(store, ref)
    engine = store.snapshotter("nydus")
    with looking(store, refs[0], tmp_path) as root:
        (root / "text").read_bytes()
    [shown], [same] = (LazyImages(store, "nydus").layers(ref) for ref in refs)
    assert shown.local_bytes == same.local_bytes > 0
    grown = {engine.usage(store.launch(ref).chain_id).size for ref in refs}
    assert max(grown) - min(grown) >= shown.local_bytes
    assert LazyTally(engine).totals().layers["partial"] == 1
    with looking(store, refs[1], tmp_path):  # what one has mounted, is not taken from the other
        assert engine.shrink(0).freed == 0
    assert engine.shrink(0).freed > 0
    store.remove_image(refs[0])
    store.collect()
    engine.cleanup()
    with looking(store, refs[1], tmp_path) as root:
        assert read_all(root) == FILES
    store.remove_image(refs[1])
    store.collect()
    engine.cleanup()
    assert [*engine.walk()] == []
    assert worker(store).status().layers == []
    assert [*(engine.root / "snapshots").iterdir()] == [*(engine.root / "blobs").iterdir()] == []
    assert store.fsck() == []


def test_an_image_shares_the_caches_of_what_it_is_based_on(
    open_store: Open, registry: LocalRegistry, tmp_path: Path
) -> None:
    store = open_store()
    base = Layer.of({"kept": noise(100_000), "changed": noise(50_000, b"1")})
    above = Layer.of({"changed": b"changed"})
    rafs = ConvertOptions(nydus=RafsOptions(chunk_size=4096))
    for name, layers in (("base", (base,)), ("app", (base, above))):
        source, ref = (f"{registry.host}/app:{tag}" for tag in (f"{name}-oci", name))
        load_image(store, "overlayfs", *layers, ref=source, keep=True)
        store.convert(source, ref, options=rafs)
        store.push(ref, plain_http=True)
        store.remove_image(ref)
        pull(store, ref)
    assert len([*store.snapshotter("nydus").root.glob("blobs/*")]) == 2
    with looking(store, f"{registry.host}/app:app", tmp_path) as root:
        assert read_all(root) == {"kept": noise(100_000), "changed": b"changed"}


def test_what_a_bootstrap_wants_first_is_fetched_at_once(
    open_store: Open, registry: LocalRegistry
) -> None:
    store = open_store()
    root = tree_of(FILES)
    bootstrap, blob = make_v6(root, prefetch=[root.children[b"dir"]])
    ref = push(registry, nydus_image(bootstrap, blob))
    pull(store, ref)
    images = LazyImages(store, "nydus")
    size = len(FILES["dir/deep/file"])
    wait_for(lambda: images.layers(ref)[0].local_bytes >= size, seconds=30)
    assert images.layers(ref)[0].local_bytes < size + 2 * CHUNK
    patterns = read_patterns(["/a", "/nowhere"])
    assert images.prefetch_paths(ref, patterns) == patterns[1:]
    images.wait(ref, 30)
    assert images.layers(ref)[0].state == "complete"


def test_check_finds_what_is_damaged(open_store: Open, registry: LocalRegistry) -> None:
    store = open_store()
    pull(store, push(registry, made(6, compressor=ZSTD)))
    engine = store.snapshotter("nydus")
    [image] = engine.root.glob("snapshots/*/layer.erofs")
    [cache] = engine.root.glob("blobs/*/cache")
    unmount_recursive(engine.root / "snapshots")
    good = image.read_bytes()
    image.write_bytes(good[:4096] + b"x" * 16 + good[4112:])  # where the table of blobs is
    os.utime(image, (1, 1))
    assert engine.fsck() == []
    [problem] = engine.fsck(deep=True)
    assert "layer.erofs is damaged" in problem.what
    image.write_bytes(good)
    os.utime(image, (1, 1))
    assert engine.fsck(deep=True) == []
    cache.rename(cache.with_name("gone"))
    [problem] = engine.fsck()
    assert "is gone" in problem.what


@pytest.mark.runtime
def test_container_runs_from_a_nydus_image(machine: Machine, registry: LocalRegistry) -> None:
    busybox = Path(shutil.which("busybox") or "").read_bytes()
    bootstrap, blob = make_v6(tree_of({"bin/busybox": busybox}, 0o755), compressor=ZSTD)
    ref = push(registry, nydus_image(bootstrap, blob))
    snapshotter = ("--snapshotter", "nydus")
    try:
        machine.lamina("images", "pull", "--plain-http", *snapshotter, ref)
        argv = ("run", "--rm", *snapshotter, ref, machine.id, "/bin/busybox", "echo", "hello")
        assert machine.lamina(*argv).stdout == "hello\n"
        assert ref in machine.lamina("lazy", "ls", *snapshotter).stdout
        assert "/bin/busybox" in machine.lamina("lazy", "map", *snapshotter, ref).stdout
        machine.lamina("lazy", "wait", *snapshotter, ref)
        assert "complete" in machine.lamina("lazy", "show", *snapshotter, ref).stdout
    finally:
        unmount_recursive(machine.root)
        end_worker(machine.root)
