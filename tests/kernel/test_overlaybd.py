"""The overlaybd snapshotter: images of a real registry that are used before they are fetched."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import signal
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.core.labels import REMOTE, UNPACKED
from lamina.core.snapshot import Kind
from lamina.errors import (
    FailedPrecondition,
    InvalidArgument,
    LaminaError,
    NotImplementedHere,
)
from lamina.formats.lsmt.reader import open_layer
from lamina.formats.overlaybd.annotations import BLOB_DIGEST, BLOB_SIZE
from lamina.formats.overlaybd.trace import Access, write_trace
from lamina.formats.zfile.layout import Algorithm
from lamina.formats.zfile.writer import ZFileOptions
from lamina.images.conversion import ConvertOptions
from lamina.images.conversion_overlaybd import OverlaybdOptions
from lamina.lazy_images import LazyImages
from lamina.linux.mountinfo import mounts_at_or_below
from lamina.mount import temp_mount, unmount_recursive
from lamina.snapshotters.lazy_overlay import GATE_LABEL
from lamina.snapshotters.overlaybd.labels import COMMIT_PATH, VSIZE, WRITABLE
from lamina.store import Store
from tests.erofs import Bytes
from tests.faulty_registry import faulty_registry
from tests.fixtures_containers import Machine, wait_for
from tests.fixtures_registry import LocalRegistry, running_registry
from tests.fixtures_stargz import end_worker, opening
from tests.hard_image import chain, hard_image, load_image, tree
from tests.images import Layer, digest
from tests.lazy_looking import Looking, read_all
from tests.nydus import annotated_image, plain_layer, push
from tests.overlaybd_images import (
    MEDIA_TYPE,
    Packing,
    block_layer,
    device_layers,
    overlaybd_image,
    trace_layer,
    turbo_layer,
    writing,
)
from tests.rafs import noise

pytest_plugins = ["tests.fixtures_registry"]
pytestmark = [
    pytest.mark.root,
    pytest.mark.overlay,
    pytest.mark.loop,
    pytest.mark.registry,
    pytest.mark.fuse,
]

FIRST = {
    "a": b"first",
    "big": noise(3_000_000, b"1"),
    "dir/deep/file": noise(90_000, b"2"),
    "empty": b"",
    "gone": b"to be removed",
    "text": b"text " * 50_000,
}
SECOND = {"a": b"second", "dir/new": noise(400_000, b"3")}
FILES = {name: data for name, data in (FIRST | SECOND).items() if name != "gone"}
Open = Callable[..., Store]


def second(root: Path) -> None:
    (root / "gone").unlink()
    writing(SECOND)(root)


@pytest.fixture(scope="session")
def layers(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return device_layers(tmp_path_factory.mktemp("layers"), [writing(FIRST), second])


@pytest.fixture
def open_store(root_dir: Path, tmp_path: Path) -> Iterator[Open]:
    with opening(root_dir, tmp_path, "overlaybd") as make:
        yield make


looks = Looking("overlaybd")
pull, worker, fetched, looking = looks.pull, looks.worker, looks.fetched, looks.at


def test_pull_fetches_indexes_alone_and_reads_are_right(
    open_store: Open, registry: LocalRegistry, tmp_path: Path, layers: list[bytes]
) -> None:
    store = open_store()
    ref = push(registry, overlaybd_image(*layers))
    pull(store, ref)
    engine = store.snapshotter("overlaybd")
    assert [REMOTE in info.labels for info in engine.walk()] == [True, True]
    mounts = engine.prepare("container", store.launch(ref).chain_id)
    with temp_mount(mounts, dir=tmp_path) as root:
        assert (root / "a").read_bytes() == b"second"
        assert 0 < fetched(store) < 1_500_000
        assert not (root / "gone").exists()
        (root / "a").write_text("changed")
    with looking(store, ref, tmp_path) as root:
        assert read_all(root) == FILES
    assert store.fsck() == []


@pytest.mark.parametrize(
    "packing",
    [
        Packing(tar=False),
        Packing(None),
        Packing(None, tar=False),
        Packing(ZFileOptions(Algorithm.ZSTD, 32768)),
        Packing(ZFileOptions(Algorithm.LZ4, 16384, checksums=False, complete_header=False)),
    ],
)
def test_each_form_is_read(
    open_store: Open, registry: LocalRegistry, tmp_path: Path, packing: Packing
) -> None:
    store = open_store()
    layers = device_layers(tmp_path, [writing(FIRST), second], packing)
    ref = push(registry, overlaybd_image(*layers))
    pull(store, ref)
    with looking(store, ref, tmp_path) as root:
        assert read_all(root) == FILES


@pytest.mark.parametrize("algorithm", Algorithm)
def test_converted_image_is_what_its_layers_have(
    open_store: Open, registry: LocalRegistry, algorithm: Algorithm
) -> None:
    store = open_store()
    source, ref = f"{registry.host}/hard:1", f"{registry.host}/hard:overlaybd"
    started = time.time_ns()
    load_image(store, "overlayfs", *hard_image(), ref=source, keep=True)
    expected = tree(store, "overlayfs", chain(store, source)[-1])
    ended = time.time_ns()
    zfile = ZFileOptions(algorithm)
    store.convert(source, ref, options=ConvertOptions(overlaybd=OverlaybdOptions(zfile)))
    store.push(ref, plain_http=True)
    store.remove_image(ref)
    pull(store, ref)
    found = tree(store, "overlaybd", chain(store, ref)[-1])
    for name, entry in expected.items():
        # Of directories that no layer describes, unpacking has its own time, and so has its root.
        if entry.mode.startswith("d") and (started < entry.mtime_ns < ended or name == "."):
            found[name] = found[name]._replace(mtime_ns=entry.mtime_ns)
    assert found == expected


def test_worker_is_killed_and_the_registry_is_gone(
    open_store: Open, tmp_path: Path, layers: list[bytes]
) -> None:
    store = open_store(more="fetching_timeout_sec = 3\n")
    with running_registry(tmp_path / "registry") as registry:
        ref = push(registry, overlaybd_image(*layers))
        pull(store, ref)
        with looking(store, ref, tmp_path) as root:
            os.kill(worker(store).status().pid, signal.SIGKILL)
            assert (root / "a").read_bytes() == FILES["a"]
    with looking(store, ref, tmp_path) as root:
        assert (root / "a").read_bytes() == FILES["a"]
        with pytest.raises(OSError, match="Input/output error"):
            (root / "big").read_bytes()
    log = (store.snapshotter("overlaybd").root / "lazy/worker.log").read_text()
    assert registry.host in log


def test_device_is_made_again_when_all_who_served_it_were_killed(
    open_store: Open, registry: LocalRegistry, tmp_path: Path, root_dir: Path, layers: list[bytes]
) -> None:
    store = open_store()
    ref = push(registry, overlaybd_image(*layers))
    pull(store, ref)
    engine = store.snapshotter("overlaybd")
    engine.prepare("before", store.launch(ref).chain_id)
    end_worker(root_dir)
    engine.prepare("after", store.launch(ref).chain_id)
    with temp_mount(engine.mounts("after"), dir=tmp_path) as root:
        assert read_all(root) == FILES


def test_everything_is_there_after_a_restart(
    open_store: Open, tmp_path: Path, root_dir: Path, layers: list[bytes]
) -> None:
    store = open_store()
    with running_registry(tmp_path / "registry") as registry:
        ref = push(registry, overlaybd_image(*layers))
        pull(store, ref)
        with looking(store, ref, tmp_path) as root:
            assert read_all(root) == FILES
    engine = store.snapshotter("overlaybd")
    engine.prepare("container", store.launch(ref).chain_id)
    unmount_recursive(root_dir)
    end_worker(root_dir)
    again = open_store().snapshotter("overlaybd")
    with temp_mount(again.mounts("container"), dir=tmp_path) as root:
        assert read_all(root) == FILES


def test_complete_devices_need_nobody(
    open_store: Open, tmp_path: Path, root_dir: Path, layers: list[bytes]
) -> None:
    store = open_store(quiet=False)
    with running_registry(tmp_path / "registry") as registry:
        ref = push(registry, overlaybd_image(*layers))
        pull(store, ref)
        images = LazyImages(store, "overlaybd")
        wait_for(lambda: images.layers(ref)[0].state == "complete", seconds=30)
        images.wait(ref, 30)
    engine = store.snapshotter("overlaybd")
    assert {info.labels[GATE_LABEL] for info in engine.walk()} == {"fuse"}
    with looking(store, ref, tmp_path) as root:
        end_worker(root_dir)
        assert read_all(root) == FILES
    assert store.fsck() == []


def test_containers_share_one_device(
    open_store: Open, registry: LocalRegistry, tmp_path: Path, layers: list[bytes]
) -> None:
    store = open_store()
    ref = push(registry, overlaybd_image(*layers))
    pull(store, ref)
    engine = store.snapshotter("overlaybd")
    for key in ("one", "two"):
        engine.prepare(key, store.launch(ref).chain_id)
    with temp_mount(engine.mounts("one"), dir=tmp_path) as root:
        (root / "a").write_text("changed")
    with temp_mount(engine.mounts("two"), dir=tmp_path) as root:
        assert (root / "a").read_bytes() == FILES["a"]
    points = [info.point for info in mounts_at_or_below(engine.root.resolve())]
    assert [point.endswith("/mnt") for point in points].count(True) == 1
    with pytest.raises(LaminaError):
        engine.remove(store.launch(ref).chain_id)


def test_layers_that_were_pulled_whole_make_a_device(
    open_store: Open, tmp_path: Path, layers: list[bytes]
) -> None:
    store = open_store()
    with faulty_registry() as registry:
        files = overlaybd_image(*layers)
        for blob in files.blobs:
            registry.add_blob(blob)
        registry.add_manifest("1", files.manifest)
        ref = f"{registry.host}/test:1"
        store.pull(ref, snapshotter="overlayfs", plain_http=True, unpack=False)
    store.unpack(ref, snapshotter="overlaybd")
    engine = store.snapshotter("overlaybd")
    assert not any(REMOTE in info.labels for info in engine.walk())
    with looking(store, ref, tmp_path) as root:
        assert read_all(root) == FILES
    assert store.fsck(deep=True) == []


@pytest.mark.parametrize("compress", [False, True])
def test_turbo_image_has_its_data_in_the_original_layer(
    open_store: Open, registry: LocalRegistry, tmp_path: Path, compress: bool
) -> None:
    store = open_store()
    turbo, original = turbo_layer(tmp_path, FIRST, compress=compress)
    registry.push_blob(original, "test")
    ref = push(registry, annotated_image(turbo))
    pull(store, ref)
    with looking(store, ref, tmp_path) as root:
        assert (root / "dir/deep/file").read_bytes() == FIRST["dir/deep/file"]
        [shown] = LazyImages(store, "overlaybd").layers(ref)
        assert compress or 0 < shown.cost.fetched_bytes < len(original) / 2
        os.kill(worker(store).status().pid, signal.SIGKILL)
        assert read_all(root) == FIRST


@pytest.mark.parametrize("listed", [False, True])
def test_what_an_acceleration_layer_names_is_fetched_at_once(
    open_store: Open, registry: LocalRegistry, layers: list[bytes], listed: bool
) -> None:
    store = open_store()
    trace = b"/nowhere\n/dir/new\n/dir\n"
    if not listed:
        at, length = place_of(layers[1], SECOND["dir/new"])
        trace = write_trace([Access(1, at, length)])
    above = trace_layer(trace)
    ref = push(registry, annotated_image(*map(block_layer, layers), above))
    pull(store, ref)
    images = LazyImages(store, "overlaybd")
    assert [layer.reason for layer in images.layers(ref)][1:] == [
        "it has no files, but says what is fetched first"
    ]
    wait_for(lambda: images.layers(ref)[0].local_bytes >= len(SECOND["dir/new"]), seconds=30)
    images.wait(ref, 30)


def place_of(blob: bytes, data: bytes) -> tuple[int, int]:
    """Return where in the LSMT file of a layer whole blocks of a file are."""
    layer = open_layer(Bytes(blob))
    whole = layer.source.read_at(0, layer.source.size)
    length = len(data) // 4096 * 4096
    return whole.index(data[:length]), length


def made_of(archive: bytes, said: dict[str, str]) -> tuple[Layer, dict[str, str]]:
    layer = Layer(archive, digest(archive), MEDIA_TYPE)
    changed = {BLOB_DIGEST: layer.digest, BLOB_SIZE: str(len(archive))}
    return layer, said | changed


def archive_of(files: dict[str, bytes], **others: tarfile.TarInfo) -> bytes:
    """Return a tar with files, and others that are no regular ones."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, info in others.items():
            info.name = name.replace("_", ".")
            archive.addfile(info)
    return out.getvalue()


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


PIPE, LINK = special(tarfile.FIFOTYPE), special(tarfile.SYMTYPE, "/dev/zero")


@pytest.mark.parametrize("other", [PIPE, LINK], ids=["pipe", "link"])
def test_trace_that_is_no_file_is_not_opened(
    open_store: Open, registry: LocalRegistry, layers: list[bytes], other: tarfile.TarInfo
) -> None:
    store = open_store()
    above = made_of(archive_of({}, trace=other), dict(trace_layer(b"")[1]))
    ref = push(registry, annotated_image(*map(block_layer, layers), above))
    pull(store, ref)
    engine = store.snapshotter("overlaybd")
    topmost = engine.stat(store.launch(ref).chain_id)
    assert UNPACKED not in topmost.labels


@pytest.mark.parametrize("name", ["ext4_fs_meta", "gzip_meta"])
@pytest.mark.parametrize("other", [PIPE, LINK], ids=["pipe", "link"])
def test_metadata_that_is_no_file_is_not_opened(
    open_store: Open,
    registry: LocalRegistry,
    tmp_path: Path,
    name: str,
    other: tarfile.TarInfo,
) -> None:
    store = open_store()
    (layer, said), original = turbo_layer(tmp_path, {"a": b"first"}, compress=True)
    registry.push_blob(original, "test")
    with gzip.open(io.BytesIO(layer.blob)) as raw, tarfile.open(fileobj=raw) as archive:
        files = {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]
    del files[name.replace("_", ".")]
    changed = made_of(archive_of(files, **{name: other}), dict(said))
    with pytest.raises(FailedPrecondition, match=r"files ext4\.fs\.meta, gzip\.meta"):
        pull(store, push(registry, annotated_image(changed)))


def test_layers_on_a_device_are_unpacked(
    open_store: Open, registry: LocalRegistry, tmp_path: Path, layers: list[bytes]
) -> None:
    store = open_store()
    above = plain_layer({"dir/": None, "dir/other": b"other", ".wh.text": b""})
    ref = push(registry, annotated_image(*map(block_layer, layers), above))
    pull(store, ref)
    without_text = {path: data for path, data in FILES.items() if path != "text"}
    with looking(store, ref, tmp_path) as root:
        assert read_all(root) == without_text | {"dir/other": b"other"}
    engine = store.snapshotter("overlaybd")
    with temp_mount(engine.prepare("container", store.launch(ref).chain_id), dir=tmp_path) as root:
        (root / "a").write_text("changed")
    engine.commit("committed", "container")
    with temp_mount(engine.view("look", "committed"), dir=tmp_path, read_only=True) as root:
        assert read_all(root) == without_text | {"dir/other": b"other", "a": b"changed"}


def test_layer_on_a_directory_is_refused(
    open_store: Open, registry: LocalRegistry, layers: list[bytes]
) -> None:
    store = open_store()
    ref = push(registry, annotated_image(plain_layer({"b": b"b"}), block_layer(layers[0])))
    with pytest.raises(FailedPrecondition, match="convert the whole image"):
        pull(store, ref)
    engine = store.snapshotter("overlaybd")
    assert {info.kind for info in engine.walk()} == {Kind.COMMITTED}


def test_plain_images_are_unpacked_and_the_reason_is_told(
    open_store: Open, registry: LocalRegistry, tmp_path: Path
) -> None:
    store = open_store()
    ref = push(registry, annotated_image(plain_layer({"b": b"b"})))
    pull(store, ref)
    [info] = store.snapshotter("overlaybd").walk()
    assert info.labels[UNPACKED] == "it is no overlaybd layer"
    with looking(store, ref, tmp_path) as root:
        assert read_all(root) == {"b": b"b"}


def test_what_is_no_layer_is_unpacked(
    open_store: Open, registry: LocalRegistry, tmp_path: Path
) -> None:
    store = open_store()
    layer = Layer.of({"b": b"b"}, compress=False)
    _, said = block_layer(layer.blob)
    ref = push(registry, annotated_image((layer, said)))
    pull(store, ref)
    [info] = store.snapshotter("overlaybd").walk()
    assert "it is no overlaybd layer" in info.labels[UNPACKED]
    with looking(store, ref, tmp_path) as root:
        assert read_all(root) == {"b": b"b"}


def test_wrong_bytes_fail(open_store: Open, tmp_path: Path) -> None:
    store = open_store(more="fetching_timeout_sec = 3\n")
    with running_registry(tmp_path / "registry") as registry:
        [blob] = device_layers(tmp_path, [writing(FIRST)])
        files = overlaybd_image(blob)
        ref = push(registry, files)
        pull(store, ref)
        [stored] = (tmp_path / "registry").rglob(f"{files.layers[0].digest[7:]}/data")
        at = blob.index(FIRST["big"][1_500_000:1_500_064])
        stored.write_bytes(blob[:at] + b"x" + blob[at + 1 :])
        with looking(store, ref, tmp_path) as root:
            with pytest.raises(OSError, match="Input/output error"):
                (root / "big").read_bytes()
            assert (root / "dir/deep/file").read_bytes() == FIRST["dir/deep/file"]
    log = (store.snapshotter("overlaybd").root / "lazy/worker.log").read_text()
    assert "CRC-32C" in log


def test_devices_are_emptied_and_removed(
    open_store: Open, registry: LocalRegistry, tmp_path: Path, layers: list[bytes]
) -> None:
    store = open_store()
    ref = push(registry, overlaybd_image(*layers))
    pull(store, ref)
    engine = store.snapshotter("overlaybd")
    with looking(store, ref, tmp_path) as root:
        (root / "big").read_bytes()
        assert engine.shrink(0).freed == 0
    assert engine.usage(store.launch(ref).chain_id).size > len(FIRST["big"])
    assert engine.shrink(0).freed > len(FIRST["big"])
    with looking(store, ref, tmp_path) as root:
        assert read_all(root) == FILES
    store.remove_image(ref)
    store.collect()
    engine.cleanup()
    assert [*engine.walk()] == []
    assert [*(engine.root / "snapshots").iterdir()] == []
    assert worker(store).status().layers == []
    assert str(engine.root / "snapshots") not in Path("/proc/self/mountinfo").read_text()
    assert store.fsck() == []


def test_check_finds_what_is_damaged(
    open_store: Open, registry: LocalRegistry, layers: list[bytes]
) -> None:
    store = open_store()
    pull(store, push(registry, overlaybd_image(*layers)))
    engine = store.snapshotter("overlaybd")
    kept = sorted(engine.root.glob("snapshots/*/kept"))[0]
    [note] = engine.root.glob("snapshots/*/device.json")
    os.utime(note, (1, 1))
    assert engine.fsck(deep=True) == []
    good = kept.read_bytes()
    kept.write_bytes(good[:-10])
    assert engine.fsck() == []
    [problem] = engine.fsck(deep=True)
    assert "kept parts" in problem.what
    kept.unlink()
    [problem] = engine.fsck()
    assert f"{kept} is gone" in problem.what
    [*_, problem] = engine.fsck(deep=True)
    assert "what is kept of an overlaybd layer" in problem.what
    kept.write_bytes(good)
    [table] = engine.root.glob("snapshots/*/device/table")
    away = table.rename(table.with_name("away"))
    [problem] = engine.fsck()
    assert f"{table} is gone" in problem.what
    away.rename(table)
    assert engine.fsck() == []
    note.write_bytes(b"")
    os.utime(note, (1, 1))
    [problem] = engine.fsck()
    assert str(note) in problem.what


def test_a_cache_file_that_was_removed_is_fetched_anew(
    open_store: Open, registry: LocalRegistry, layers: list[bytes], tmp_path: Path
) -> None:
    store = open_store()
    ref = push(registry, overlaybd_image(*layers))
    pull(store, ref)
    with looking(store, ref, tmp_path) as root:
        assert read_all(root) == FILES
    engine = store.snapshotter("overlaybd")
    [data] = engine.root.glob("snapshots/*/device/data")
    data.unlink()
    end_worker(engine.root)
    with looking(store, ref, tmp_path) as root:
        assert read_all(root) == FILES
    assert data.stat().st_blocks
    assert store.fsck() == []


def test_what_a_power_loss_has_emptied_is_removed(
    open_store: Open, registry: LocalRegistry, layers: list[bytes]
) -> None:
    store = open_store()
    ref = push(registry, overlaybd_image(*layers))
    pull(store, ref)
    engine = store.snapshotter("overlaybd")
    for path in engine.root.glob("snapshots/*/*.json"):
        path.write_bytes(b"")
    store.remove_image(ref)
    store.collect()
    engine.cleanup()
    assert [*(engine.root / "snapshots").iterdir()] == []


@pytest.mark.parametrize(("mode", "configured"), [("dir", False), ("dev", True)])
def test_what_is_written_to_a_device_becomes_a_layer_of_it(
    open_store: Open,
    registry: LocalRegistry,
    tmp_path: Path,
    layers: list[bytes],
    mode: str,
    configured: bool,
) -> None:
    store = open_store(more=f'rw_mode = "{mode}"\n' if configured else "")
    ref = push(registry, overlaybd_image(*layers))
    pull(store, ref)
    engine = store.snapshotter("overlaybd")
    labels = {} if configured else {WRITABLE: mode}
    mounts = engine.prepare("container", store.launch(ref).chain_id, labels=labels)
    assert [mount.type for mount in mounts] == ["ext4" if mode == "dev" else "bind"]
    with temp_mount(mounts, dir=tmp_path) as root:
        assert read_all(root) == FILES
        (root / "a").write_text("changed")
        (root / "text").unlink()
        (root / "dir/other").write_bytes(noise(500_000, b"4"))
        with pytest.raises(FailedPrecondition, match="still mounted"):
            engine.commit("early", "container")
    with temp_mount(engine.mounts("container"), dir=tmp_path) as root:
        assert (root / "a").read_text() == "changed"
    assert engine.usage("container").size >= 500_000
    engine.commit("committed", "container")
    assert engine.stat("committed").labels[UNPACKED].startswith("it was written here")
    expected = FILES | {"a": b"changed", "dir/other": noise(500_000, b"4")}
    del expected["text"]
    with temp_mount(engine.view("look", "committed"), dir=tmp_path, read_only=True) as root:
        assert read_all(root) == expected
    info = engine.stat("committed")
    assert Path(info.labels[COMMIT_PATH]).stat().st_size >= 500_000
    engine.sync()
    with temp_mount(engine.prepare("next", "committed", labels=labels), dir=tmp_path) as root:
        (root / "a").write_text("again")
        assert read_all(root) == expected | {"a": b"again"}
    engine.remove("look")
    engine.remove("next")
    engine.remove("committed")
    engine.cleanup()
    assert store.fsck() == []


def test_writable_device_is_mounted_anew_when_all_who_served_it_were_killed(
    open_store: Open, registry: LocalRegistry, tmp_path: Path, root_dir: Path, layers: list[bytes]
) -> None:
    store = open_store()
    ref = push(registry, overlaybd_image(*layers))
    pull(store, ref)
    engine = store.snapshotter("overlaybd")
    mounts = engine.prepare("container", store.launch(ref).chain_id, labels={WRITABLE: "dir"})
    with temp_mount(mounts, dir=tmp_path) as root:
        (root / "a").write_text("changed")
        os.sync()
        os.kill(worker(store).status().pid, signal.SIGKILL)
        (root / "dir/new").write_text("changed too")
        os.sync()
        assert (root / "text").read_bytes() == FILES["text"]
    end_worker(root_dir)
    with temp_mount(engine.mounts("container"), dir=tmp_path) as root:
        assert read_all(root) == FILES | {"a": b"changed", "dir/new": b"changed too"}


@pytest.mark.parametrize("mode", ["dir", "dev"])
def test_a_device_is_made_where_nothing_is_below(
    open_store: Open, tmp_path: Path, mode: str
) -> None:
    store = open_store()
    engine = store.snapshotter("overlaybd")
    labels = {WRITABLE: mode, VSIZE: "1"}
    with temp_mount(engine.prepare("first", labels=labels), dir=tmp_path) as root:
        assert [*root.iterdir()] == []
        assert os.statvfs(root).f_blocks * os.statvfs(root).f_frsize > 900 << 20
        writing(FIRST)(root)
    engine.commit("committed", "first")
    with temp_mount(engine.view("look", "committed"), dir=tmp_path, read_only=True) as root:
        assert read_all(root) == FIRST
    engine.prepare("source", "committed", labels=labels)
    with pytest.raises(NotImplementedHere, match="writes to a device"):
        engine.fork("source", "fork")
    for label, value in ((WRITABLE, "disk"), (VSIZE, "0")):
        with pytest.raises(InvalidArgument, match=label):
            engine.prepare("wrong", labels={**labels, label: value})


@pytest.mark.runtime
def test_container_runs_from_a_device(
    machine: Machine, registry: LocalRegistry, tmp_path: Path
) -> None:
    busybox = Path(shutil.which("busybox") or "").read_bytes()

    def install(root: Path) -> None:
        writing({"bin/busybox": busybox})(root)
        (root / "bin/busybox").chmod(0o755)

    ref = push(registry, overlaybd_image(*device_layers(tmp_path, [install])))
    snapshotter = ("--snapshotter", "overlaybd")
    try:
        machine.lamina("images", "pull", "--plain-http", *snapshotter, ref)
        argv = ("run", "--rm", *snapshotter, ref, machine.id, "/bin/busybox", "echo", "hello")
        assert machine.lamina(*argv).stdout == "hello\n"
        assert ref in machine.lamina("lazy", "ls", *snapshotter).stdout
        machine.lamina("lazy", "wait", *snapshotter, ref)
        assert "complete" in machine.lamina("lazy", "show", *snapshotter, ref).stdout
        assert machine.lamina("lazy", "map", *snapshotter, ref).stdout
        machine.lamina("snapshots", "--snapshotter", "stargz", "ls")  # makes it
        wrong: list[tuple[tuple[str, ...], str]] = [
            (("show", ref), "is not in stargz"),
            (("show", ref), "it is in another: --snapshotter overlaybd"),
            (("prefetch", "--list", "/dev/null", *snapshotter, ref), "prefetch --trace"),
        ]
        for words, said in wrong:
            assert said in machine.lamina("lazy", *words, code=7).stderr
    finally:
        unmount_recursive(machine.root)
        end_worker(machine.root)
