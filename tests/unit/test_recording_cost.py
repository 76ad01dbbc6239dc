"""What recorded files need of lazy layers, counted from their tables of contents."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.core.digest import Digest
from lamina.errors import NotFound
from lamina.formats.estargz.footer import find_toc
from lamina.formats.estargz.toc import Toc, read_toc
from lamina.images.manifest import OCI_MANIFEST, Descriptor
from lamina.images.recording_cost import LayerCost, costs
from lamina.images.recording_layers import attribute
from lamina.images.store import ImageStore
from lamina.images.tree import PlatformImage, read_image
from tests.erofs import Bytes
from tests.estargz import make_blob
from tests.images import Layer, digest, image

CHUNK = 4096
TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
FILES = {"a": b"a" * 100, "big": b"b" * 10_000, "c": b"c" * 200, "empty": b"", "d": b"d" * 5000}


def toc_of(blob: bytes) -> Toc:
    return read_toc(Bytes(blob), find_toc(Bytes(blob)))


def offsets(blob: bytes) -> dict[str, int]:
    """Return where the data of each file starts, and at "end" where the last ends."""
    toc = toc_of(blob)
    starts = {entry.name: entry.offset for entry in toc.entries if entry.type == "reg"}
    return {**starts, "end": toc.data_end}


@pytest.fixture
def add(tmp_path: Path) -> Iterator[Callable[..., tuple[ImageStore, PlatformImage]]]:
    """Put an image of these blobs into a store; those that are lazy are annotated."""
    stores: list[ImageStore] = []

    def make(*blobs: bytes, lazy: bool = True) -> tuple[ImageStore, PlatformImage]:
        store = ImageStore(tmp_path)
        stores.append(store)
        files = image(*(Layer(blob, digest(gzip.decompress(blob))) for blob in blobs))
        manifest = json.loads(files.manifest)
        for entry, blob in zip(manifest["layers"], blobs, strict=True):
            entry["annotations"] = {TOC_DIGEST: toc_of(blob).digest} if lazy else {}
        target = json.dumps(manifest).encode()
        for content in (*files.blobs, target):
            found = Descriptor(OCI_MANIFEST, Digest(digest(content)), len(content))
            store.content.put(content, found)
        return store, read_image(found, store.read)

    yield make
    for store in stores:
        store.close()


Add = Callable[..., tuple[ImageStore, PlatformImage]]


def cost(add: Add, paths: str, *blobs: bytes, lazy: bool = True) -> list[LayerCost]:
    store, found = add(*blobs, lazy=lazy)
    recorded = attribute(found, store, [path.encode() for path in paths.split()])
    return costs(found, store, recorded)


def test_files_apart_and_side_by_side(add: Add) -> None:
    blob = make_blob(FILES, CHUNK)
    at = offsets(blob)
    (found,) = cost(add, "d a big", blob)
    assert (found.files, found.file_bytes, found.size) == (3, 15_100, len(blob))
    assert found.needed == at["c"] - at["a"] + at["end"] - at["d"]
    # `a` and `big` are neighbours, but are asked for one after the other.
    assert (found.ranges, found.requests, found.left) == (2, 3, 3)
    assert found.prefetch is None
    assert found.toc == len(blob) - at["end"]


def test_a_large_file_is_one_request_and_an_empty_one_none(add: Add) -> None:
    blob = make_blob(FILES, CHUNK)
    (found,) = cost(add, "big empty", blob)
    at = offsets(blob)
    assert (found.needed, found.ranges, found.requests) == (at["c"] - at["big"], 1, 1)


def test_files_that_share_a_stream_are_fetched_once(add: Add) -> None:
    blob = make_blob({"a": b"a" * 10, "b": b"b" * 10, "c": b"c" * 10}, CHUNK, shared=1 << 20)
    (found,) = cost(add, "c a", blob)
    assert (found.ranges, found.requests) == (1, 1)
    assert found.needed == offsets(blob)["end"]


def test_what_lies_before_the_landmark(add: Add) -> None:
    files = {"big": FILES["big"], ".prefetch.landmark": b"\x0f", "a": b"a", "c": b"c"}
    blob = make_blob(files, CHUNK)
    at = offsets(blob)
    (found,) = cost(add, "a big", blob)
    assert found.prefetch == at[".prefetch.landmark"]
    assert (found.requests, found.left) == (2, 1)


def test_each_layer_has_its_own_files(add: Add) -> None:
    base, top = (
        make_blob(FILES, CHUNK),
        make_blob({"a": b"new", ".no.prefetch.landmark": b"\x0f"}, CHUNK),
    )
    below, above = cost(add, "a c", base, top)
    assert (below.files, below.requests, below.prefetch) == (1, 1, None)
    assert (above.files, above.file_bytes, above.prefetch) == (1, 3, 0)


def test_a_plain_layer_is_needed_whole(add: Add) -> None:
    blob = make_blob(FILES, CHUNK)
    (found,) = cost(add, "a", blob, lazy=False)
    assert not found.is_lazy
    assert (found.needed, found.requests, found.left) == (len(blob), 1, 1)


def test_a_blob_that_is_not_here(add: Add) -> None:
    blob = make_blob(FILES, CHUNK)
    store, found = add(blob)
    store.content.delete(Digest(digest(blob)))
    with pytest.raises(NotFound, match="blob of a layer"):
        attribute(found, store, [b"a"])
