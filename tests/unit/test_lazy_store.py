"""The caches of many layers: listing, removing, and having one start anew."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from lamina.core.digest import Digest, sha256
from lamina.errors import AlreadyExists, FailedPrecondition, NotFound, OutOfRange, Unavailable
from lamina.lazy.cache import LayerCache
from lamina.lazy.emptying import allocated, empty
from lamina.lazy.layer import LayerFile, LayerLock, read_layer
from lamina.lazy.sources.description import FileDescription, RegistryDescription, SourceDescription
from lamina.lazy.sources.file import FileSource
from lamina.lazy.store import CacheStore
from lamina.lazy.unit import Codec
from tests.lazy_layers import IMPATIENT, MemorySource, make_layer

LAYER = make_layer([[30_000], [40_000]], [Codec.NONE])
SOURCE = FileDescription("/nowhere")


def digest(number: int) -> Digest:
    return sha256(b"%d" % number)


@pytest.fixture
def store(tmp_path: Path) -> CacheStore:
    return CacheStore(tmp_path / "caches")


def create(store: CacheStore, number: int) -> Path:
    return store.create(digest(number), LayerFile(SOURCE), LAYER.header, LAYER.units)


def opened(store: CacheStore, number: int) -> LayerCache:
    return store.open(digest(number), lambda _: MemorySource(LAYER.blob), policy=IMPATIENT)


def fill(store: CacheStore, number: int, used: int) -> None:
    """Make a layer that is complete and was used at second `used`."""
    directory = create(store, number)
    cache = opened(store, number)
    cache.complete()
    cache.close()
    os.utime(directory / "lock", (used, used))


def test_an_empty_store(store: CacheStore) -> None:
    assert store.layers() == []
    with pytest.raises(NotFound):
        store.remove(digest(1))


def test_layers_are_listed_with_what_they_take(store: CacheStore) -> None:
    fill(store, 1, used=20)
    fill(store, 2, used=10)
    create(store, 3)
    (store.directory(digest(3)).parent / "something else").mkdir()
    cache = opened(store, 3)
    first, second, third = store.layers()
    assert (first.digest, second.digest, third.digest) == (digest(2), digest(1), digest(3))
    assert first.used == 10 * 10**9
    assert first.allocated_bytes >= 70_000 > third.allocated_bytes
    assert [layer.is_open for layer in (first, second, third)] == [False, False, True]
    cache.close()


def test_an_open_layer_is_not_removed(store: CacheStore) -> None:
    create(store, 1)
    cache = opened(store, 1)
    with pytest.raises(FailedPrecondition, match="has it open"):
        store.remove(digest(1))
    cache.close()
    store.remove(digest(1))
    with pytest.raises(NotFound):
        opened(store, 1)
    create(store, 1)


def test_a_layer_exists_once(store: CacheStore) -> None:
    create(store, 1)
    with pytest.raises(AlreadyExists):
        create(store, 1)


def test_an_emptied_layer_is_fetched_anew(tmp_path: Path) -> None:
    directory = LAYER.create(tmp_path / "layer")
    cache = LAYER.open(directory)
    cache.complete()
    with pytest.raises(FailedPrecondition, match="has it open"):
        empty(directory)
    cache.close()
    with (directory / "data").open("rb") as mounted:
        full = allocated(directory)
        assert empty(directory) == full - allocated(directory) >= 70_000
        assert mounted.read() == LAYER.content
    cache = LAYER.open(directory)
    assert (cache.local_bytes, cache.doubts) == (0, "")
    assert cache.read(0, cache.size) == LAYER.content
    assert cache.fetched_bytes > 0
    cache.close()


@pytest.mark.parametrize("step", ["_truncate", "_replace"])
def test_emptying_that_is_cut_short_leaves_nothing_to_be_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    directory = LAYER.create(tmp_path / "layer")
    cache = LAYER.open(directory)
    cache.complete()
    cache.close()

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"lamina.lazy.emptying.{step}", cut)
    with pytest.raises(KeyboardInterrupt):
        empty(directory)
    monkeypatch.undo()
    cache = LAYER.open(directory)
    assert (cache.local_bytes > 0) == (step == "_truncate")
    assert cache.read(0, cache.size) == LAYER.content
    cache.close()
    empty(directory)
    assert (directory / "data").stat().st_blocks == 0


def test_what_kills_left_is_swept(store: CacheStore) -> None:
    directory = create(store, 1)
    half_made = directory.with_name("new-1")
    half_removed = directory.with_name("rm-1")
    create(store, 2).rename(half_made)
    create(store, 3).rename(half_removed)
    nameless = directory.with_name("rm-2")
    nameless.mkdir()
    (nameless / "data").touch()
    for name in ("new-2", "new-4"):
        directory.with_name(name).mkdir()
    os.utime(directory.with_name("new-2"), (1, 1))
    busy = directory.with_name("new-3")
    create(store, 4).rename(busy)
    lock = LayerLock(busy)
    store.sweep()
    names = {directory.name, "new-4"}
    assert {path.name for path in directory.parent.iterdir()} == {*names, busy.name}
    lock.release()
    store.sweep()
    assert {path.name for path in directory.parent.iterdir()} == names


def test_layer_files_keep_what_they_are_given(tmp_path: Path) -> None:
    registry = RegistryDescription("example/app:v1", digest(1), 5)
    sources: tuple[SourceDescription, ...] = (SOURCE, registry)
    for number, source in enumerate(sources):
        directory = LAYER.create(tmp_path / f"{number}")
        layer = LayerFile(source, gate="fuse")
        store = CacheStore(tmp_path / f"store-{number}")
        path = store.create(digest(1), layer, LAYER.header, LAYER.units)
        assert read_layer(path) == layer
        assert read_layer(directory).gate == ""


def test_a_file_as_a_source(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(LAYER.blob)
    source = FileSource(path)
    assert source.size == len(LAYER.blob)
    assert source.read_at(5, 1000) == LAYER.blob[5:1005]
    assert source.read_at(0, 0) == b""
    for offset, length in [(-1, 1), (0, -1), (source.size, 1)]:
        with pytest.raises(OutOfRange):
            source.read_at(offset, length)
    os.truncate(path, 100)
    with pytest.raises(Unavailable, match="ends at byte 100"):
        source.read_at(50, 100)
    source.close()
    with pytest.raises(NotFound):
        FileSource(tmp_path / "nothing")
    with pytest.raises(Unavailable, match="Too many levels"):
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        FileSource(tmp_path / "loop")


def test_a_cache_over_a_file(tmp_path: Path) -> None:
    directory = LAYER.create(tmp_path / "layer")
    blob = tmp_path / "layer.blob"
    cache = LayerCache(
        directory,
        lambda description: FileSource(Path(description.path)),  # type: ignore[union-attr]
        policy=replace(IMPATIENT, fill_seconds=2.0),
    )
    with pytest.raises(NotFound):
        cache.fill(0, 1)
    blob.write_bytes(LAYER.blob)
    assert cache.read(0, cache.size) == LAYER.content
    cache.close()
