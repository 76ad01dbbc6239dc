"""The nydus snapshotter: images of a real registry that are used before they are fetched."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.config import load
from lamina.core.labels import REMOTE
from lamina.core.mount import Mount
from lamina.formats.rafs.annotations import REF
from lamina.lazy.launch import LazyWorker
from lamina.lazy_images import LazyImages
from lamina.mount import temp_mount, unmount_recursive
from lamina.store import Store
from tests.fixtures_registry import LocalRegistry, running_registry
from tests.fixtures_stargz import GATES, end_worker
from tests.images import ImageFiles, digest
from tests.kernel.test_rafs import seen, without_steering
from tests.nydus import annotated_image, blob_layer, bootstrap_layer, nydus_image, push, tree_of
from tests.rafs import described, noise, sample
from tests.rafs_blobs import BLAKE3, GZIP, LZ4, NONE, SHA256, ZSTD
from tests.rafs_v5 import make_v5
from tests.rafs_v6 import make_v6
from tests.rafs_zran import make_zran

pytest_plugins = ["tests.fixtures_registry"]
pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.erofs, pytest.mark.registry]

CONFIG = """version = 3
[plugins."io.containerd.snapshotter.v1.nydus"]
gate = "{gate}"
no_background_fetch = {quiet}
"""
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
    opened: list[Store] = []

    def make(gate: str = "auto", *, quiet: bool = True, more: str = "") -> Store:
        config = tmp_path / "config.toml"
        config.write_text(CONFIG.format(gate=gate, quiet=str(quiet).lower()) + more)
        opened.append(Store(root_dir, config=load(config)))
        return opened[-1]

    yield make
    for store in opened:
        store.close()
    unmount_recursive(root_dir)
    end_worker(root_dir)


def made(version: int, **options: int) -> ImageFiles:
    bootstrap, blob = MAKERS[version](tree_of(FILES), **options)
    return nydus_image(bootstrap, blob, version=str(version))


def pull(store: Store, ref: str) -> None:
    store.pull(ref, snapshotter="nydus", plain_http=True)


def worker(store: Store) -> LazyWorker:
    return LazyWorker(store.snapshotter("nydus").root)


def fetched(store: Store) -> int:
    return sum(layer.local_bytes for layer in worker(store).status().layers)


@contextmanager
def looking(store: Store, ref: str, tmp_path: Path) -> Iterator[Path]:
    """Mount a View of an image."""
    engine = store.snapshotter("nydus")
    mounts: list[Mount] = engine.view("look", store.launch(ref).chain_id)
    try:
        with temp_mount(mounts, dir=tmp_path, read_only=True) as root:
            yield root
    finally:
        engine.remove("look")


def read_all(root: Path) -> dict[str, bytes]:
    found = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


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


@pytest.mark.parametrize("gate", GATES)
def test_worker_is_killed_and_the_registry_is_gone(
    open_store: Open, tmp_path: Path, gate: str
) -> None:
    store = open_store(gate, more="fetching_timeout_sec = 2\n")
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
