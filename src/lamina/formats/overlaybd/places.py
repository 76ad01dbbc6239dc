"""Where on a device places of its layers' files are: what a trace says, for whoever reads a device.

Mappings lead from the device to files. To go back, those that show are sorted by their place, layer
by layer, when the layer is asked for.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import accumulate
from operator import add
from typing import NamedTuple

from lamina.errors import ResourceExhausted
from lamina.formats.lsmt.layout import MAX_PLACE, SECTOR, TAG_SHIFT, ZEROED
from lamina.formats.lsmt.mappings import Mappings
from lamina.formats.lsmt.stack import Stack
from lamina.formats.overlaybd.trace import Access

MAX_STEPS = 3 << 20
"""Mappings that are looked at for all accesses; those that lead to the same place may be many."""


class Range(NamedTuple):
    """Bytes of a device.

    Attributes:
        offset: the first.
        length: how many.
    """

    offset: int
    length: int


def device_ranges(stack: Stack, accesses: Iterable[Access]) -> Iterator[Range]:
    """Yield what of a device accesses to its layers have read, in their order.

    What does not show on the device yields nothing: headers, indexes, what upper layers hide, and
    layers that there are none of.

    Raises:
        ResourceExhausted: they lead to more than MAX_STEPS mappings.
    """
    rows = _rows(stack.mappings)
    layers: dict[int, _Places] = {}
    left = MAX_STEPS
    for access in accesses:
        if access.layer not in rows:
            continue
        if access.layer not in layers:
            layers[access.layer] = _Places(stack.mappings, rows[access.layer])
        found = layers[access.layer].find(access.place, access.length, left)
        left -= len(found) + 1
        if left <= 0:
            raise ResourceExhausted(f"find more than {MAX_STEPS} places of a trace")
        yield from _joined(found, stack.size)


class _Places:
    """Mappings of one layer by their place in its file."""

    def __init__(self, mappings: Mappings, rows: array[int]) -> None:
        # All have the same number of a layer above the place.
        order = sorted(rows, key=mappings.places.__getitem__)
        self._firsts = array("Q", (mappings.places[row] & MAX_PLACE for row in order))
        self._starts = array("Q", map(mappings.starts.__getitem__, order))
        self._lengths = array("H", map(mappings.lengths.__getitem__, order))
        # Places may overlap: a row before the first of these cannot reach beyond it.
        self._ends = array("Q", accumulate(map(add, self._firsts, self._lengths), max))

    def find(self, place: int, length: int, limit: int) -> list[Range]:
        """Return a range for each mapping that leads to some of a place's bytes.

        No more than `limit` mappings are looked at.
        """
        stop = place + length
        found: list[Range] = []
        first = bisect_right(self._ends, place // SECTOR)
        for row in range(first, min(len(self._firsts), first + limit)):
            begin = self._firsts[row] * SECTOR
            if begin >= stop:
                break
            start = max(place, begin)
            end = min(stop, begin + self._lengths[row] * SECTOR)
            offset = self._starts[row] * SECTOR + start - begin
            # One of no length counts as a step.
            found.append(Range(offset, max(end - start, 0)))
        return found


def _rows(mappings: Mappings) -> dict[int, array[int]]:
    """Return the rows of mappings that lead to data, by layer."""
    rows: defaultdict[int, array[int]] = defaultdict(lambda: array("I"))
    for row, place in enumerate(mappings.places):
        if not place & ZEROED:
            rows[place >> TAG_SHIFT].append(row)
    return dict(rows)


def _joined(found: Iterable[Range], size: int) -> Iterator[Range]:
    """Yield ranges up to the end of the device, neighbours as one."""
    offset = end = 0
    for start, length in found:
        stop = min(start + length, size)
        if start >= stop:
            continue
        if start != end:
            if end > offset:
                yield Range(offset, end - offset)
            offset = start
        end = stop
    if end > offset:
        yield Range(offset, end - offset)
