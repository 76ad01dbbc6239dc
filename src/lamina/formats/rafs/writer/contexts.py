"""Parts of a gzip layer that chunks are read from: from a place between two blocks on."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from lamina.errors import NotImplementedHere
from lamina.formats.deflate import Point
from lamina.formats.rafs.zran import MAX_OUTPUT, ZranContext

SPACING = 1 << 20
"""Bytes of output between places to begin at, at least."""
_WANTED = 2 << 20
"""Bytes of output that a context has at most, unless one chunk or large blocks need more."""


class Place(NamedTuple):
    """Where a chunk is: in which context, and at which byte of that's output."""

    context: int
    offset: int


class Contexts:
    """The contexts of a layer, made as chunks ask for them, by ascending place in the tar.

    Attributes:
        made: what there is so far; the last may still grow.
    """

    def __init__(self, points: Sequence[Point], ends: array[int]) -> None:
        """Begin.

        Args:
            points: by ascending place, the first at byte 0 of the tar.
            ends: pairs of numbers: bytes of the tar up to the end of a block, and the byte of the
                layer up to which that takes.
        """
        self.made: list[ZranContext] = []
        self._points = points
        self._starts = [point.out_offset for point in points]
        self._out_ends, self._in_ends = ends[::2], ends[1::2]

    def place(self, offset: int, size: int) -> Place:
        """Return where `size` bytes of the tar are found, from byte `offset` on.

        Raises:
            NotImplementedHere: the blocks before them are so large that no context can have them.
        """
        end = offset + size
        point = self._points[bisect_right(self._starts, offset) - 1]
        last = self.made[-1] if self.made else None
        # Where blocks are large, one that begins no later than the last would have all of it again.
        if last is None or (end - last.out_offset > _WANTED and point.out_offset > last.out_offset):
            last = ZranContext(
                point.in_offset, 0, point.out_offset, 0, point.window, point.byte, point.bits
            )
            self.made.append(last)
        size = max(end - last.out_offset, last.out_size)
        if size > MAX_OUTPUT:
            what = f"begin to decompress a gzip layer less than {MAX_OUTPUT} bytes before byte"
            raise NotImplementedHere(what, offset, hint="convert it without --oci-ref")
        stop = self._in_ends[bisect_left(self._out_ends, last.out_offset + size)]
        self.made[-1] = last._replace(out_size=size, in_size=stop - last.in_offset)
        return Place(len(self.made) - 1, offset - last.out_offset)
