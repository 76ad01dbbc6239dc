"""How much of a layer is fetched at once, before anybody reads it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lamina.errors import InvalidArgument
from lamina.lazy.unit_list import WANTED, write_units

if TYPE_CHECKING:
    from lamina.formats.estargz.tree import LayerTree

PREFETCH_SIZE = "containerd.io/snapshot/remote/stargz.prefetch"
"""Label: decimal bytes of a layer without landmark; counts more than the configuration's."""


class Prefetching(NamedTuple):
    """What the configuration says.

    Attributes:
        off: nothing is fetched before it is read, whatever landmarks say.
        size: bytes of the start of a layer that has no landmark.
    """

    off: bool = False
    size: int = 0


def first_bytes(prefetching: Prefetching, landmark: int | None, labels: Mapping[str, str]) -> int:
    """Return how many bytes of the blob, from its start, are to be fetched at once.

    Args:
        prefetching: the configuration.
        landmark: what `LayerTree.prefetch` says.
        labels: of the layer's snapshot.

    Raises:
        InvalidArgument: the label is no number.
    """
    if prefetching.off:
        return 0
    if landmark is not None:
        return landmark
    size = labels.get(PREFETCH_SIZE)
    if size is None:
        return prefetching.size
    if not size.isdecimal():
        raise InvalidArgument(f"label {PREFETCH_SIZE}", size, hint="a number of bytes is needed")
    return int(size)


def want_first(tree: LayerTree, cache: Path, size: int) -> None:
    """Note which units begin within so many bytes of the blob, where there are any."""
    # Units are in the order of the blob.
    count = bisect_left(tree.units, size, key=attrgetter("source_offset"))
    if count:
        write_units(cache / WANTED, range(count))
