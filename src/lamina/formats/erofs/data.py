"""Data of regular files on its way from an archive into the blocks of an image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import BinaryIO

from lamina.formats.erofs.tree import BLOCK, HOLE, Extent
from lamina.formats.tar import Entry, TarReader

_MAX_UNITS = 1 << 16
_HOLE_SIZE = 1 << 16


class DataArea:
    """The blocks of an image that have files' data, filled in order.

    Attributes:
        block: the first that is still free.
    """

    def __init__(self, out: BinaryIO, block: int) -> None:
        out.seek(block * BLOCK)
        self._out = out
        self.block = block

    def store(self, reader: TarReader, entry: Entry) -> Sequence[Extent]:
        """Write the body of the reader's current entry; return where it lies.

        Holes of a sparse file take no blocks where they cover whole units (see `sparse_unit`).
        """
        if entry.sparse is not None:
            return self._store_sparse(reader, entry)
        if not entry.size:
            return ()
        extent = Extent(entry.size, 0, self.block * BLOCK)
        write = self._out.write
        while part := reader.take():
            write(part)
        self._pad(entry.size)
        return (extent,)

    def _store_sparse(self, reader: TarReader, entry: Entry) -> Sequence[Extent]:
        extents = []
        end = 0
        body = _Body(reader)
        unit = sparse_unit(entry.real_size)
        for run in data_runs(entry.sparse or (), unit):
            start = run[0][0] // unit * unit
            if start > end:
                extents.append(Extent(start - end, HOLE, 0))
            end = min(-(-sum(run[-1]) // unit) * unit, entry.real_size)
            extents.append(Extent(end - start, 0, self.block * BLOCK))
            position = start
            for offset, length in run:
                self._skip(offset - position)
                body.copy(self._out, length)
                position = offset + length
            self._skip(end - position)
            self._pad(end - start)
        if end < entry.real_size:
            extents.append(Extent(entry.real_size - end, HOLE, 0))
        return extents

    def _skip(self, size: int) -> None:
        """Leave so many zeros, as a hole of the image where they are many."""
        if size < _HOLE_SIZE:
            self._out.write(bytes(size))
        else:
            self._out.seek(size, io.SEEK_CUR)

    def _pad(self, size: int) -> None:
        """Fill up the last block of so many bytes, which have been written."""
        self._out.write(bytes(-size % BLOCK))
        self.block += -(-size // BLOCK)


class _Body:
    """The body of an entry, taken in pieces of given lengths."""

    def __init__(self, reader: TarReader) -> None:
        self._reader = reader
        self._part = memoryview(b"")

    def copy(self, out: BinaryIO, length: int) -> None:
        while length:
            self._part = self._part or self._reader.take()
            piece = self._part[:length]
            out.write(piece)
            self._part = self._part[len(piece) :]
            length -= len(piece)


def sparse_unit(size: int) -> int:
    """Return in which units a sparse file has data or holes.

    A unit is a block, unless that makes too many: each takes 8 bytes of the image.
    """
    whole = 1 << max(size - 1, 0).bit_length()
    return max(BLOCK, whole // _MAX_UNITS)


def data_runs(pieces: Sequence[tuple[int, int]], unit: int) -> list[list[tuple[int, int]]]:
    """Return the pieces of data of a sparse file, those together whose units touch."""
    runs: list[list[tuple[int, int]]] = []
    end = -1
    for offset, length in pieces:
        if not length:
            continue
        if offset // unit * unit > end:
            runs.append([])
        runs[-1].append((offset, length))
        end = -(-(offset + length) // unit) * unit
    return runs
