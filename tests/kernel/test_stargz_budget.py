"""Lazy layers whose data is taken away again, to keep within a budget."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lamina.core.snapshot import Kind
from lamina.errors import LaminaError
from lamina.mount import mount_all, temp_mount, unmount
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.janitor import SnapshotterChore
from lamina.snapshotters.lazy_eviction import COMPLETES
from lamina.snapshotters.lower_mounts import has_option
from lamina.snapshotters.stargz.driver import CACHE
from lamina.store import Store
from tests.fixtures_command import Command
from tests.fixtures_registry import LocalRegistry
from tests.fixtures_stargz import (
    ALL,
    GATES,
    annotated,
    fetched,
    noise,
    push,
    read_all,
    stargz_layer,
    top,
    worker,
)
from tests.images import ImageFiles, image

pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.erofs, pytest.mark.registry]

LARGE = 1_000_000
"""More than the data of one image here, and less than that of two."""


def budget(size: int) -> str:
    """Configure how many bytes lazy layers may have."""
    return f'cache_budget = "{size}"\n'


def other(registry: LocalRegistry) -> str:
    """Push another image, of one layer."""
    files = image(stargz_layer({"third": noise(800_000, 9)}))
    registry.push(annotated(files), files.blobs, "other", "1")
    return f"{registry.host}/other:1"


def caches(store: Store) -> dict[str, Path]:
    """Return the caches of all layers, by the keys of their snapshots."""
    engine = store.snapshotter("stargz")
    assert isinstance(engine, Engine)
    ids = {key: id for id, key in engine._store.ids().items()}
    found = {key: engine.root / "snapshots" / str(id) / CACHE for key, id in ids.items()}
    return {key: path for key, path in found.items() if path.exists()}


def engine_of(store: Store) -> Engine:
    engine = store.snapshotter("stargz")
    assert isinstance(engine, Engine)
    return engine


@pytest.mark.parametrize("gate", GATES)
def test_emptied_layers_are_fetched_again_when_they_are_read(
    open_store: Callable[..., Store],
    registry: LocalRegistry,
    files: ImageFiles,
    tmp_path: Path,
    gate: str,
) -> None:
    store = open_store(gate)
    ref = push(registry, files)
    store.pull(ref, snapshotter="stargz", plain_http=True)
    engine = engine_of(store)
    before = engine.usage(top(store, ref)).size
    for _ in range(2):
        assert read_all(store, ref, tmp_path) == ALL
        assert engine.usage(top(store, ref)).size >= before + 300_000
        done = engine.shrink(0)
        assert len(done.layers) == 2
        assert done.freed >= sum(map(len, ALL.values()))
        assert engine.usage(top(store, ref)).size <= before + 4096
        assert worker(store).status().layers == []
    assert engine.shrink(0).layers == ()
    assert read_all(store, ref, tmp_path) == ALL
    assert fetched(store) >= sum(map(len, ALL.values()))


@pytest.mark.parametrize("gate", GATES)
def test_what_somebody_uses_stays(
    open_store: Callable[..., Store],
    registry: LocalRegistry,
    files: ImageFiles,
    tmp_path: Path,
    gate: str,
) -> None:
    store = open_store(gate)
    ref = push(registry, files)
    store.pull(ref, snapshotter="stargz", plain_http=True)
    engine = engine_of(store)
    point = tmp_path / "point"
    point.mkdir()
    mounts = engine.prepare("container", top(store, ref))
    assert engine.shrink(0).layers == ()
    mount_all(mounts, point)
    try:
        assert (point / "big").read_bytes() == ALL["big"]
        # The snapshot is gone and its mount is not: the kernel still has the layers.
        engine.remove("container")
        assert engine.shrink(0).layers == ()
        # Nor may the layers go, as the kernel would read zeros then.
        for key in [info.name for info in engine.walk()][::-1]:
            engine.remove(key)
        with pytest.raises(LaminaError, match="still mounted"):
            engine.cleanup()
        assert {name: (point / name).read_bytes() for name in ALL} == ALL
    finally:
        unmount(point)
    engine.cleanup()
    assert not list((engine.root / "snapshots").iterdir())


def test_least_recently_used_image_is_emptied_for_the_next(
    open_store: Callable[..., Store], registry: LocalRegistry, files: ImageFiles, tmp_path: Path
) -> None:
    store = open_store(more=budget(LARGE * 2))
    first, second = push(registry, files), other(registry)
    for ref in (first, second):
        store.pull(ref, snapshotter="stargz", plain_http=True)
    assert read_all(store, second, tmp_path).keys() == {"third"}
    assert read_all(store, first, tmp_path) == ALL
    engine = engine_of(store)
    assert engine.shrink().layers == ()
    used = engine.shrink(LARGE * 3 // 2)
    assert len(used.layers) == 1
    assert caches(store)[top(store, second)].joinpath("data").stat().st_blocks == 0
    assert fetched(store) >= sum(map(len, ALL.values()))
    for key, cache in caches(store).items():
        assert engine.stat(key).kind is Kind.COMMITTED
        assert cache.joinpath("data").stat().st_size > 0


@pytest.mark.parametrize(("size", "completes"), [(LARGE // 2, False), (LARGE * 4, True)])
def test_nothing_is_fetched_in_the_background_that_does_not_fit(
    open_store: Callable[..., Store],
    registry: LocalRegistry,
    tmp_path: Path,
    size: int,
    completes: bool,
) -> None:
    store = open_store(quiet=False, more=budget(size))
    ref = other(registry)
    store.pull(ref, snapshotter="stargz", plain_http=True)
    [cache] = caches(store).values()
    assert (cache / COMPLETES).exists() == completes
    with temp_mount(engine_of(store).view("look", top(store, ref)), dir=tmp_path, read_only=True):
        pass
    if completes:
        worker(store).wait(cache, 30.0)
    assert (fetched(store) > 0) == completes


def test_budget_is_kept_once_a_container_is_gone(
    open_store: Callable[..., Store], registry: LocalRegistry, files: ImageFiles, tmp_path: Path
) -> None:
    store = open_store(more=budget(LARGE // 2))
    ref = push(registry, files)
    store.pull(ref, snapshotter="stargz", plain_http=True)
    engine = engine_of(store)
    with temp_mount(engine.prepare("container", top(store, ref)), dir=tmp_path) as root:
        assert (root / "big").read_bytes() == ALL["big"]
        assert (root / "other").read_bytes() == ALL["other"]
        assert engine.shrink().layers == ()
    engine.remove("container")
    SnapshotterChore(engine).work()
    assert [(path / "data").stat().st_blocks for path in caches(store).values()] == [0, 0]


def test_command_tells_what_it_has_freed(
    open_store: Callable[..., Store],
    registry: LocalRegistry,
    files: ImageFiles,
    tmp_path: Path,
    root_dir: Path,
) -> None:
    store = open_store()
    ref = push(registry, files)
    store.pull(ref, snapshotter="stargz", plain_http=True)
    assert read_all(store, ref, tmp_path) == ALL
    command = Command(root_dir)
    try:
        kept = command.run("snapshots", "shrink").stdout + command.run("snapshots", "shrink").stderr
        assert kept.startswith(b"freed 0.0 B of 0 layers; ")
        done = json.loads(command.run("snapshots", "shrink", "--to", "0", "--json").stdout)
        assert done["Layers"] == 2
        assert done["Freed"] >= sum(map(len, ALL.values())) > done["Left"] > 0
        refused = command.run("snapshots", "shrink", "--snapshotter", "overlayfs", code=None)
        assert b"only stargz" in refused.stderr
    finally:
        command.close()


@pytest.mark.fuse
def test_emptied_layers_are_mounted_from_their_cache_files_once_more(
    open_store: Callable[..., Store], registry: LocalRegistry, files: ImageFiles, tmp_path: Path
) -> None:
    store = open_store("fuse")
    ref = push(registry, files)
    store.pull(ref, snapshotter="stargz", plain_http=True)
    engine = engine_of(store)
    points = [cache.with_name("fs") for cache in caches(store).values()]
    assert read_all(store, ref, tmp_path) == ALL
    for _ in range(2):
        for layer in worker(store).status().layers:
            worker(store).wait(Path(layer.directory), 30)
        assert not any(has_option(point, "noatime") for point in points)
        assert read_all(store, ref, tmp_path) == ALL
        assert all(has_option(point, "noatime") for point in points)
        assert len(engine.shrink(0).layers) == len(points)
        assert read_all(store, ref, tmp_path) == ALL


def test_damaged_data_is_found_and_fetched_again(
    open_store: Callable[..., Store], registry: LocalRegistry, files: ImageFiles, tmp_path: Path
) -> None:
    store = open_store()
    ref = push(registry, files)
    store.pull(ref, snapshotter="stargz", plain_http=True)
    cache = caches(store)[top(store, ref)]
    with (cache / "data").open("r+b") as data:
        worker(store).wait(cache, 30)
        assert store.fsck(deep=True) == []
        start = (cache / "data").read_bytes().index(ALL["other"][:100])
        data.seek(start)
        data.write(b"damage")
    assert store.fsck() == []
    [problem] = store.fsck(deep=True)
    assert problem.what.endswith(f"bytes of {cache / 'data'} are damaged")
    engine = engine_of(store)
    engine.view("container", top(store, ref))
    assert [str(one) for one in store.repair(deep=True).left] == [str(problem)]
    engine.remove("container")
    assert store.repair(deep=True).left == []
    assert read_all(store, ref, tmp_path) == ALL
