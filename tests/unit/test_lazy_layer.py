"""The directory of one layer: made once, emptied, and filled from a file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from lamina.core.digest import sha256
from lamina.errors import AlreadyExists, FailedPrecondition, NotFound, OutOfRange, Unavailable
from lamina.lazy.cache import LayerCache
from lamina.lazy.emptying import allocated, empty
from lamina.lazy.layer import LayerFile, create_layer, read_layer
from lamina.lazy.sources.description import FileDescription, RegistryDescription, SourceDescription
from lamina.lazy.sources.file import FileSource
from lamina.lazy.unit import Codec
from tests.lazy_layers import IMPATIENT, make_layer

LAYER = make_layer([[30_000], [40_000]], [Codec.NONE])


def test_a_layer_exists_once(tmp_path: Path) -> None:
    directory = LAYER.create(tmp_path / "layer")
    with pytest.raises(AlreadyExists):
        LAYER.create(directory)
    assert [*tmp_path.iterdir()] == [directory]


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


def test_layer_files_keep_what_they_are_given(tmp_path: Path) -> None:
    sources: tuple[SourceDescription, ...] = (
        FileDescription("/nowhere"),
        RegistryDescription("example/app:v1", sha256(b"1"), 5),
    )
    for number, source in enumerate(sources):
        layer = LayerFile(source, gate="fuse")
        create_layer(tmp_path / f"{number}", layer, LAYER.header, LAYER.units)
        assert read_layer(tmp_path / f"{number}") == layer
    assert read_layer(LAYER.create(tmp_path / "layer")).gate == ""


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
