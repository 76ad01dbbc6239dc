"""What is fetched and decoded at a time, and where the decoded bytes lie in a cache file."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from operator import add
from typing import NamedTuple, overload

from lamina.errors import FormatError
from lamina.formats.erofs.tree import BLOCK
from lamina.formats.estargz.chunks import HAS_DIGEST, IS_ZEROS, Chunks
from lamina.formats.estargz.toc import TocEntry, entry_error

MAX_UNIT = 512 << 20
"""Bytes of a unit, encoded and decoded: one is held in memory whole."""
MAX_CACHE = BLOCK << 32
"""Bytes of the cache file: block numbers have 32 bits."""


class Piece(NamedTuple):
    """One chunk of one file.

    Attributes:
        inner_offset: where its bytes start in the decoded unit.
        length: in bytes, at least 1.
        cache_offset: where they go in the cache file.
        digest: SHA-256 of them; empty where the TOC has none.
    """

    inner_offset: int
    length: int
    cache_offset: int
    digest: bytes


class Unit(NamedTuple):
    """One or several neighbouring streams; all numbers in bytes.

    Attributes:
        source_offset: where the first stream starts in the blob.
        source_length: up to the next stream with data; may have bytes that no piece needs.
        cache_offset: a multiple of BLOCK.
        cache_length: up to the end of the last piece; what precedes the first is zeros.
        pieces: in order, at least one.
    """

    source_offset: int
    source_length: int
    cache_offset: int
    cache_length: int
    pieces: Sequence[Piece]


class Columns(NamedTuple):
    """Units and their pieces as arrays, for those who write a million of them.

    Attributes:
        source_offset: of units, 64 bits.
        source_length: of units, 32 bits.
        cache_block: of units: `cache_offset` in blocks, 32 bits.
        cache_length: of units, 32 bits.
        first_piece: of units, and the number of pieces, 32 bits.
        inner_offset: of pieces, 32 bits.
        length: of pieces, 32 bits.
        cache_offset: of pieces, 64 bits.
        has_digest: 1 or 0 for each piece, 8 bits.
        digests: 32 bytes for each piece.
    """

    source_offset: array[int]
    source_length: array[int]
    cache_block: array[int]
    cache_length: array[int]
    first_piece: array[int]
    inner_offset: array[int]
    length: array[int]
    cache_offset: array[int]
    has_digest: array[int]
    digests: bytearray


class Units(Sequence[Unit]):
    """Units in the order of the blob, which is that of the cache too; made when asked for."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._source = array("Q")
        self._source_length = array("I")
        self._first = array("I", [0])
        self._number = array("I")
        self._inner = array("I")
        self._place = array("Q")

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> Unit: ...
    @overload
    def __getitem__(self, index: slice) -> list[Unit]: ...
    def __getitem__(self, index: int | slice) -> Unit | list[Unit]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        source, length = self._source[index], self._source_length[index]
        index %= len(self)
        pieces = tuple(map(self._piece, range(self._first[index], self._first[index + 1])))
        start = pieces[0].cache_offset // BLOCK * BLOCK
        return Unit(
            source, length, start, pieces[-1].cache_offset + pieces[-1].length - start, pieces
        )

    def columns(self) -> Columns:
        """Return all of them."""
        places, firsts = self._place, self._first[:-1]
        lengths, flags, digests = self._chunks.columns(self._number)
        ends = array("Q", map(add, places, lengths))
        blocks = array("I", (places[first] // BLOCK for first in firsts))
        unit_ends = (ends[following - 1] for following in self._first[1:])
        cache_lengths = (end - block * BLOCK for end, block in zip(unit_ends, blocks, strict=True))
        return Columns(
            self._source, self._source_length, blocks, array("I", cache_lengths), self._first,
            self._inner, lengths, places, flags, digests,
        )  # fmt: skip

    @property
    def is_open(self) -> bool:
        """Whether pieces were added since the last unit."""
        return len(self._number) > self._first[-1]

    def add_piece(self, number: int, inner: int, place: int) -> None:
        """Add a chunk to the unit that comes next.

        Args:
            number: of the chunk.
            inner: byte of the decoded unit.
            place: byte of the cache file.
        """
        self._number.append(number)
        self._inner.append(inner)
        self._place.append(place)

    def add(self, source_offset: int, source_length: int) -> None:
        """Make a unit of the pieces that were added since the last."""
        self._source.append(source_offset)
        self._source_length.append(source_length)
        self._first.append(len(self._number))

    def _piece(self, piece: int) -> Piece:
        number, chunks = self._number[piece], self._chunks
        return Piece(
            self._inner[piece], chunks.length(number), self._place[piece], chunks.digest(number)
        )


class Planner:
    """Gives each file a place in the cache, block-aligned and without gaps, in blob order.

    A chunk that starts within a block shares it with the one before, so that both are one unit: of
    a file whose chunk size is no multiple of BLOCK, streams are joined until one starts with a
    block. A file's streams follow each other directly, and decode to its bytes without a gap.

    Zeros that reach from one block into another are of no unit: nothing is ever written there, and
    the blocks that they share with other chunks are padded with zeros. Those within a block are
    decoded as any chunk, since the ones behind them are in the same unit.

    Args:
        chunks: of all files, complete.
        entries: of the TOC.
        require_digests: whether every chunk has to have one.

    Attributes:
        units: so far; all once `finish` was called.
    """

    def __init__(
        self, chunks: Chunks, entries: Sequence[TocEntry], *, require_digests: bool
    ) -> None:
        self.units = Units(chunks)
        self._chunks = chunks
        self._entries = entries
        self._require_digests = require_digests
        self._starts = array("Q", sorted(chunks.streams))
        self._following = 0  # index of the first stream beyond the current one
        # Of the open unit: where it starts, its last stream and where that ends, in the blob; its
        # place in the cache; the decoded bytes of the streams before the last, and up to the end
        # of the last piece.
        self._start = self._stream = self._end = -1
        self._place = self._base = self._decoded = 0

    def add(self, first: int, stop: int, position: int) -> None:
        """Lay out the next file in the order of the blob.

        Args:
            first: chunk of the file.
            stop: chunk behind its last one.
            position: where it begins in the cache.

        Raises:
            FormatError: chunks overlap or are not in the order of the blob, the unit is too large,
                or a chunk has no digest though it must.
        """
        units = self.units
        for number in range(first, stop):
            stream, inner, offset, length, flags = self._chunks[number]
            if flags & IS_ZEROS and _is_hole(offset, length):
                self.finish()
                continue
            if self._require_digests and not flags & HAS_DIGEST:
                raise self._error(number, "chunkDigest", "a digest of each chunk", "none")
            if stream != self._stream or not units.is_open:
                self._turn_to(number, stream, position + offset)
            start = self._base + inner
            if start < self._decoded:
                raise self._error(number, "innerOffset", str(self._decoded - self._base), inner)
            self._decoded = start + length
            filled = position + offset + length - self._place
            size = max(self._decoded, self._end - self._start, filled)
            if size > MAX_UNIT:
                raise self._error(number, "chunkSize", f"units of at most {MAX_UNIT} bytes", size)
            units.add_piece(number, start, position + offset)

    def finish(self) -> None:
        """Close the unit, as at the end and where a hole begins."""
        if self.units.is_open:
            self.units.add(self._start, self._end - self._start)

    def _turn_to(self, number: int, stream: int, position: int) -> None:
        """Go on with another stream, whose first chunk has its place at `position`."""
        is_open = self.units.is_open
        least = self._stream + (not is_open)
        if stream < least:
            raise self._error(number, "offset", f"{least} or more", stream)
        if is_open and position % BLOCK:
            if stream != self._end:
                raise self._error(number, "offset", "the stream that follows", stream)
            self._base = self._decoded
        else:
            self.finish()
            self._start, self._place = stream, position // BLOCK * BLOCK
            self._base = self._decoded = 0
        self._stream = stream
        self._end = self._stream_end(stream)

    def _stream_end(self, stream: int) -> int:
        """Return where a stream ends at the latest; asked for in ascending order."""
        starts, following = self._starts, self._following
        while following < len(starts) and starts[following] <= stream:
            following += 1
        self._following = following
        return starts[following] if following < len(starts) else self._chunks.data_end

    def _error(self, number: int, field: str, expected: str, got: object) -> FormatError:
        index = self._chunks.numbers[number]
        return entry_error(index, self._entries[index], field, expected, got)


def _is_hole(offset: int, length: int) -> bool:
    """Tell whether there is an edge of a block between both ends of a chunk, or at one."""
    return -(-offset // BLOCK) <= (offset + length) // BLOCK
