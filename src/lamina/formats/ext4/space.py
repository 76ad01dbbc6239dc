"""The blocks of a filesystem: which are used, and which comes next.

New blocks come from behind all used ones, so that a file is one run, and what a layer brings lies
together. Only where that is full, holes are filled that earlier layers left, the lowest first.
"""

from __future__ import annotations

from array import array
from collections import deque

from lamina.errors import ResourceExhausted
from lamina.formats.ext4.bitmaps import Bitmaps, set_bits
from lamina.formats.ext4.geometry import Geometry
from lamina.formats.ext4.layout import BLOCKS_PER_GROUP
from lamina.formats.ext4.runs import Run, append, common, joined, without

_RESERVED_PART = 16
"""Which part of the free blocks is kept for what is to come first."""


class Space:
    """All blocks, with their bitmaps.

    Attributes:
        bitmaps: of all groups; the numbers are blocks.
        free: blocks of each group.
    """

    def __init__(self, places: Geometry) -> None:
        """Mark the metadata of an empty filesystem."""
        self.bitmaps = Bitmaps(BLOCKS_PER_GROUP, BLOCKS_PER_GROUP)
        self.free = array("I", [BLOCKS_PER_GROUP]) * places.groups
        last = places.groups - 1
        self.free[last] = places.blocks - last * BLOCKS_PER_GROUP
        # What lies behind the end must be set, so the last group has a bitmap from the beginning.
        bitmap = self.bitmaps.bitmap(last)
        set_bits(bitmap, self.free[last], BLOCKS_PER_GROUP, used=True)
        self.bitmaps.changed.add(last)
        self._first: list[int] = [0, 0]
        self._behind: list[int] = [places.data, places.blocks]
        self._holes: deque[Run] = deque()
        self._taken: list[Run] = []
        self._rewritten: list[Run] = []
        self._freed: list[Run] = []
        self._mark((0, places.data), used=True)

    def begin(self, *, reserve: bool) -> None:
        """Begin a layer.

        Args:
            reserve: let there be blocks for what is asked for as `first`, before all others.
        """
        if reserve:
            start, end = self._behind
            split = start + (end - start) // _RESERVED_PART
            self._first = [start, split]
            self._behind = [split, end]

    def finish(self) -> list[Run]:
        """End the layer: mark its blocks, and return what it wrote and has still, ascending.

        What it freed can be had from the next layer on.
        """
        taken, freed = joined(self._taken), joined(self._freed)
        for run in taken:
            self._mark(run, used=True)
        for run in freed:
            self._mark(run, used=False)
        written = without(taken, common(taken, freed)) + self._rewritten
        holes = [*self._holes, *freed]
        start, end = self._first
        if start < end:
            holes.append((start, end - start))
        self._holes = deque(joined(holes))
        self._first = [0, 0]
        self._taken, self._rewritten, self._freed = [], [], []
        return joined(written)

    def take(self, count: int, *, first: bool = False) -> list[Run]:
        """Return so many blocks that are used from now on, in as few runs as there can be.

        Args:
            count: at least 1.
            first: from the part that is reserved, if they fit.

        Raises:
            ResourceExhausted: the device is full.
        """
        for area in (self._first, self._behind) if first else (self._behind,):
            if area[1] - area[0] >= count:
                start = area[0]
                area[0] += count
                append(self._taken, start, count)
                return [(start, count)]
        return self._take_pieces(count)

    def _take_pieces(self, count: int) -> list[Run]:
        runs = []
        while count:
            start, length = self._next_piece()
            used = min(length, count)
            if used < length:
                self._holes.appendleft((start + used, length - used))
            append(self._taken, start, used)
            runs.append((start, used))
            count -= used
        return runs

    def _next_piece(self) -> Run:
        if self._holes:
            return self._holes.popleft()
        for area in (self._first, self._behind):
            start, end = area
            if start < end:
                area[0] = end
                return start, end - start
        raise ResourceExhausted("write ext4", hint="the device is full: choose a larger one")

    def rewrite(self, block: int) -> None:
        """Count a block to what the layer writes, though it was used before."""
        self._rewritten.append((block, 1))

    def give_back(self, runs: list[Run]) -> None:
        """Free blocks."""
        self._freed += runs

    def _mark(self, run: Run, *, used: bool) -> None:
        for group, count in self.bitmaps.mark(*run, used=used):
            self.free[group] += -count if used else count
