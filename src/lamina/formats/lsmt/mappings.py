"""Mappings of a device to files: in three columns, since there may be millions."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from lamina.formats.lsmt.layout import (
    MAX_LENGTH,
    MAX_PLACE,
    SECTOR,
    TAG_SHIFT,
    ZEROED,
)

HOLE = -1
"""In place of a layer: no layer maps these bytes. They are zeros, unless layers lie below."""
ZEROS = -2
"""The same: a layer says that they are zeros, whatever lies below."""


class Extent(NamedTuple):
    """Bytes of a device that come from one place.

    Attributes:
        offset: byte of the device.
        length: bytes.
        layer: number of the layer, the lowest being 0; or HOLE or ZEROS.
        place: byte of that layer's file; 0 where there is none.
    """

    offset: int
    length: int
    layer: int
    place: int


class Mappings:
    """Where sectors of a device are, ascending and apart.

    Attributes:
        starts: first sector of the device.
        lengths: sectors.
        places: second words as they are on disk: the first sector in the file, ZEROED, and from
            bit TAG_SHIFT on the number of the layer.
    """

    __slots__ = ("lengths", "places", "starts")

    def __init__(self, starts: array[int], lengths: array[int], places: array[int]) -> None:
        """Take columns of equal length, of the types Q, H and Q."""
        self.starts = starts
        self.lengths = lengths
        self.places = places

    @classmethod
    def empty(cls) -> Mappings:
        """Return none."""
        return cls(array("Q"), array("H"), array("Q"))

    def __len__(self) -> int:
        return len(self.starts)

    def extents(self) -> Iterator[Extent]:
        """Yield an extent for each mapping; what lies between is not mapped."""
        for start, length, place in zip(self.starts, self.lengths, self.places, strict=True):
            yield _extent(start * SECTOR, length * SECTOR, place, 0)

    def lookup(self, offset: int, length: int) -> list[Extent]:
        """Return what a range of bytes is made of, without gaps; neighbours are joined."""
        found: list[Extent] = []
        position, stop = offset, offset + length
        starts, lengths = self.starts, self.lengths
        for row in range(max(bisect_right(starts, offset // SECTOR) - 1, 0), len(starts)):
            start = starts[row] * SECTOR
            if start >= stop or position == stop:
                break
            end = min(start + lengths[row] * SECTOR, stop)
            if end <= position:
                continue
            if start > position:
                _join(found, Extent(position, start - position, HOLE, 0))
                position = start
            _join(found, _extent(position, end - position, self.places[row], position - start))
            position = end
        if position < stop:
            _join(found, Extent(position, stop - position, HOLE, 0))
        return found


class MappingsBuilder:
    """Mappings being made, in order; what continues a mapping is joined with it.

    Attributes:
        mappings: those so far.
    """

    def __init__(self, limit: int = MAX_LENGTH) -> None:
        """Let no mapping become longer than `limit` sectors by joining."""
        self.mappings = Mappings.empty()
        self._limit = limit
        self._end = -1
        self._place_end = 0

    def add(self, start: int, length: int, place: int) -> None:
        """Append a mapping of at least 1 and at most MAX_LENGTH sectors.

        Args:
            start: first sector of the device; not before the end of the last mapping.
            length: sectors.
            place: as in `Mappings.places`.
        """
        columns = self.mappings
        joined = start == self._end and place == self._place_end
        if joined and columns.lengths[-1] + length <= self._limit:
            columns.lengths[-1] += length
        else:
            columns.starts.append(start)
            columns.lengths.append(length)
            columns.places.append(place)
        self._end = start + length
        # Zeros have a place, which stands still.
        self._place_end = place if place & ZEROED else place + length


def _extent(offset: int, length: int, place: int, skipped: int) -> Extent:
    if place & ZEROED:
        return Extent(offset, length, ZEROS, 0)
    return Extent(offset, length, place >> TAG_SHIFT, (place & MAX_PLACE) * SECTOR + skipped)


def _join(found: list[Extent], extent: Extent) -> None:
    """Append an extent, or lengthen the last one if it goes on there."""
    if found:
        last = found[-1]
        goes_on = last.layer < 0 or last.place + last.length == extent.place
        if last.layer == extent.layer and goes_on:
            found[-1] = last._replace(length=last.length + extent.length)
            return
    found.append(extent)
