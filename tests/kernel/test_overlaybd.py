"""The overlaybd snapshotter: images of a real registry that are used before they are fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.core.labels import REMOTE
from lamina.core.mount import Mount
from lamina.lazy.launch import LazyWorker
from lamina.mount import temp_mount
from lamina.store import Store
from tests.fixtures_registry import LocalRegistry
from tests.fixtures_stargz import opening
from tests.nydus import push
from tests.overlaybd_images import device_layers, overlaybd_image, writing
from tests.rafs import noise

pytest_plugins = ["tests.fixtures_registry"]
pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.loop, pytest.mark.registry]

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


def pull(store: Store, ref: str) -> None:
    store.pull(ref, snapshotter="overlaybd", plain_http=True)


def worker(store: Store) -> LazyWorker:
    return LazyWorker(store.snapshotter("overlaybd").root)


def fetched(store: Store) -> int:
    return sum(layer.local_bytes for layer in worker(store).status().layers)


@contextmanager
def looking(store: Store, ref: str, tmp_path: Path) -> Iterator[Path]:
    """Mount a View of an image."""
    engine = store.snapshotter("overlaybd")
    mounts: list[Mount] = engine.view("look", store.launch(ref).chain_id)
    try:
        with temp_mount(mounts, dir=tmp_path, read_only=True) as root:
            yield root
    finally:
        engine.remove("look")


def read_all(root: Path) -> dict[str, bytes]:
    found = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def test_pull_fetches_indexes_alone_and_reads_are_right(
    open_store: Open, registry: LocalRegistry, tmp_path: Path, layers: list[bytes]
) -> None:
    store = open_store("fuse")
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
