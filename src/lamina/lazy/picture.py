"""A layer's cache as a row of cells: what is missing, what is there unread, and what was read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lamina.lazy.view import LayerView


class Cell(NamedTuple):
    """A stretch of the cache file; bytes of units, by what is known of them.

    Attributes:
        start: byte of the cache file.
        stop: byte behind it.
        missing: bytes that are not local.
        unread: local, but nobody has asked for them.
        read: local, and asked for.
    """

    start: int
    stop: int
    missing: int
    unread: int
    read: int

    @property
    def kind(self) -> str:
        """`missing`, `unread` or `read`: what most of it is, the later at a tie."""
        return max((self.missing, 0, "missing"), (self.unread, 1, "unread"),
                   (self.read, 2, "read"))[2]  # fmt: skip


class PlacedFile(NamedTuple):
    """A file of a layer; its bytes are at `start` up to `stop` of the cache file."""

    path: str
    start: int
    stop: int


class FileUse(NamedTuple):
    """A file that was read.

    Attributes:
        path: from the root on.
        size: bytes of it that the layer has.
        read: bytes of it that lie in units which somebody asked for.
    """

    path: str
    size: int
    read: int


def cells(view: LayerView, count: int) -> list[Cell]:
    """Return a layer as up to `count` cells of the same size; none where it has no data."""
    units = len(view.table)
    if not view.size or not units:
        return []
    count = max(1, min(count, units))
    sums = [[0, 0, 0] for _ in range(count)]
    read = bytearray(units)
    for number in view.trace:
        read[number] = 1
    for number in range(units):
        kind = 0 if not view.local[number] else 1 + read[number]
        start = view.table.cache_start(number)
        _add(sums, kind, start, start + view.table.cache_length(number), view.size)
    return [
        Cell(view.size * index // count, view.size * (index + 1) // count, *found)
        for index, found in enumerate(sums)
    ]


def _add(sums: list[list[int]], kind: int, start: int, stop: int, size: int) -> None:
    """Add the bytes [start, stop) to the cells that they lie in."""
    count = len(sums)
    index = max(0, start * count // size - 1)
    while start < stop and index < count:
        end = min(stop, size * (index + 1) // count)
        if end > start:
            sums[index][kind] += end - start
            start = end
        index += 1


def files_read(view: LayerView, files: Sequence[PlacedFile]) -> list[FileUse]:
    """Return the files that have bytes in units which were asked for, the first one first.

    Args:
        view: of the layer.
        files: of the layer, by ascending `start`, not overlapping.
    """
    starts = [file.start for file in files]
    found: dict[int, int] = {}
    for number in view.trace:
        start = view.table.cache_start(number)
        stop = start + view.table.cache_length(number)
        index = max(0, bisect_right(starts, start) - 1)
        while index < len(files) and files[index].start < stop:
            file = files[index]
            if (shared := min(stop, file.stop) - max(start, file.start)) > 0:
                found[index] = found.get(index, 0) + shared
            index += 1
    return [
        FileUse(files[index].path, files[index].stop - files[index].start, read)
        for index, read in found.items()
    ]


def names_in(cell: Cell, files: Sequence[PlacedFile], starts: Sequence[int]) -> Iterable[str]:
    """Yield the files that have bytes in a cell; `starts` is theirs, ascending."""
    index = max(0, bisect_right(starts, cell.start) - 1)
    while index < len(files) and files[index].start < cell.stop:
        if files[index].stop > cell.start:
            yield files[index].path
        index += 1
