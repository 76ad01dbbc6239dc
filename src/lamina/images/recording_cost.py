"""What a start takes of an image: the bytes and requests that its recorded files need.

Nothing is fetched or timed for it. A lazy layer is asked for units (`formats.estargz.units`), so
the recorded files say exactly which bytes of the blob are needed before the command has read them
all; a layer that is not lazy is needed whole.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from lamina.core.digest import Digest
from lamina.errors import NotFound
from lamina.formats.erofs.tree import Inode
from lamina.formats.estargz.annotations import CHUNKED_DIGESTS, TOC_DIGEST
from lamina.formats.estargz.footer import Kind, find_toc
from lamina.formats.estargz.toc import read_toc
from lamina.formats.estargz.tree import LayerTree, to_tree
from lamina.formats.estargz.units import Unit
from lamina.images.blob_source import open_blob
from lamina.images.manifest import Descriptor
from lamina.images.recording_layers import Attributed
from lamina.images.store import ImageStore
from lamina.images.tree import PlatformImage

LAZY_ANNOTATIONS = frozenset([TOC_DIGEST, *CHUNKED_DIGESTS])
"""One of these says that a layer can be read lazily: it names the digest of its TOC."""
_OPAQUE = b"trusted.overlay.opaque"


class LayerCost(NamedTuple):
    """What a start takes of one layer; sizes in bytes.

    Attributes:
        digest: of the blob.
        size: of the blob.
        is_lazy: whether it can be read a file at a time.
        files: recorded files that the layer has.
        file_bytes: sizes of these, decompressed; None where the layer is not lazy.
        toc: of TOC and footer, which mounting needs; 0 where the layer is not lazy.
        prefetch: from the start of the blob to its landmark; 0 where nothing is to be prefetched,
            None where the blob does not say.
        needed: of the blob for the recorded files, without the TOC.
        ranges: stretches of the blob that these are; at most so many requests if all were known.
        requests: how often the command waits when each file is read whole, one after the other in
            the recorded order, each stretch that is missing is one request, and nothing is
            prefetched or read ahead.
        left: requests that are left of these once all before the landmark is there.
        left_bytes: of the blob, what these fetch.
    """

    digest: Digest
    size: int
    is_lazy: bool
    files: int
    file_bytes: int | None
    toc: int
    prefetch: int | None
    needed: int
    ranges: int
    requests: int
    left: int
    left_bytes: int


def costs(image: PlatformImage, store: ImageStore, recorded: Attributed) -> list[LayerCost]:
    """Return what the recorded files need of each layer, base first.

    Args:
        image: whose layers are as those of the image that the files were attributed to.
        store: has the blobs.
        recorded: the files.

    Raises:
        NotFound: a layer's blob is not in the store, or lacks one of its files.
        FormatError: a layer is damaged.
    """
    return [
        _cost(store, layer, recorded.of_layer(index))
        for index, layer in enumerate(image.manifest.layers)
    ]


def _cost(store: ImageStore, layer: Descriptor, paths: Sequence[bytes]) -> LayerCost:
    if LAZY_ANNOTATIONS.isdisjoint(layer.annotations):
        return _whole(layer, paths)
    with open_blob(store.content, layer.digest) as blob:
        location = find_toc(blob)
        if location.kind is Kind.EXTERNAL:
            return _whole(layer, paths)
        tree = to_tree(read_toc(blob, location), opaque_xattr=_OPAQUE, require_digests=False)
    reads = _Reads(layer, tree)
    requests = reads.requests(paths, 0)
    left = reads.requests(paths, tree.prefetch or 0)
    return LayerCost(
        digest=layer.digest,
        size=layer.size,
        is_lazy=True,
        files=len(paths),
        file_bytes=sum(reads.file(path).size for path in paths),
        toc=layer.size - location.data_end,
        prefetch=tree.prefetch,
        needed=reads.count_bytes(requests.units),
        ranges=reads.count_ranges(requests.units),
        requests=requests.number,
        left=left.number,
        left_bytes=reads.count_bytes(left.units),
    )


def _whole(layer: Descriptor, paths: Sequence[bytes]) -> LayerCost:
    """A layer that is fetched whole before anything runs."""
    return LayerCost(
        digest=layer.digest,
        size=layer.size,
        is_lazy=False,
        files=len(paths),
        file_bytes=None,
        toc=0,
        prefetch=None,
        needed=layer.size,
        ranges=1,
        requests=1,
        left=1,
        left_bytes=layer.size,
    )


class _Requests(NamedTuple):
    number: int
    units: set[int]


class _Reads:
    """Reads of the files of one lazy layer."""

    def __init__(self, layer: Descriptor, tree: LayerTree) -> None:
        self.units: Sequence[Unit] = list(tree.units)
        self._layer = layer
        self._root = tree.root
        self._starts = [unit.cache_offset for unit in self.units]

    def file(self, path: bytes) -> Inode:
        """Return the file at a path."""
        file: Inode | None = self._root
        for part in path.split(b"/"):
            file = file.children.get(part) if file else None
        if file is None:
            raise NotFound(f"file of layer {self._layer.digest}", os.fsdecode(path))
        return file

    def requests(self, paths: Sequence[bytes], there: int) -> _Requests:
        """Read the files in order, with the first `there` bytes of the blob fetched before."""
        count = 0
        fetched: set[int] = set()
        for path in paths:
            previous = -2
            for number in self._numbers(self.file(path)):
                unit = self.units[number]
                if number in fetched or unit.source_offset + unit.source_length <= there:
                    continue
                fetched.add(number)
                count += not self._follows(previous, number)
                previous = number
        return _Requests(count, fetched)

    def count_bytes(self, numbers: set[int]) -> int:
        """Return how many bytes of the blob some units are."""
        return sum(self.units[number].source_length for number in numbers)

    def count_ranges(self, numbers: set[int]) -> int:
        """Return how many stretches of the blob some units are."""
        return sum(not self._follows(n - 1 if n - 1 in numbers else -2, n) for n in sorted(numbers))

    def _numbers(self, file: Inode) -> range:
        """Return the units that have a file's bytes."""
        if not file.extents:
            return range(0)
        start = file.extents[0].offset
        first = max(0, bisect_right(self._starts, start) - 1)
        return range(first, bisect_right(self._starts, start + file.size - 1))

    def _follows(self, previous: int, number: int) -> bool:
        """Tell whether a unit is the one behind another, in the blob too."""
        if previous != number - 1 or previous < 0:
            return False
        unit = self.units[previous]
        return unit.source_offset + unit.source_length == self.units[number].source_offset
