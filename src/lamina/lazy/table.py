"""The file that says where each byte of a layer's cache comes from.

Little-endian, by columns, so that the columns of a million units are checked by C loops and used
where they are mapped. The header (64 bytes), then the columns, each padded to 8 bytes, then the
SHA-256 of all before it. N units in the order of the cache, M pieces in the same order:

    source_offset u64[N]   source_length u32[N]   cache_block u32[N]   cache_length u32[N]
    first_piece u32[N+1]   codec u8[N]
    inner_offset u32[M]    length u32[M]          cache_offset u64[M]  check u8[M]
    digest 32 bytes[M]

`cache_block` counts blocks of 4096 bytes. A unit's pieces are those from its `first_piece` to that
of the next. A million units of one piece each are 74 MB of file, none of it on the heap.

Not supported: units above 512 MiB, caches above 16 TiB, digests other than SHA-256 and BLAKE3.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
import operator
import os
import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from lamina.errors import FormatError, InvalidArgument
from lamina.lazy.unit import (
    BLOCK,
    DIGEST_LENGTH,
    MAX_CACHE_BYTES,
    MAX_UNIT_BYTES,
    Check,
    Codec,
    Piece,
    Unit,
)

FORMAT = "unit table"
MAGIC = b"LaminaUT"
VERSION = 1
_HEADER = struct.Struct("<8sII4Q16x")
assert _HEADER.size == 64
"""Magic, version, header size, source size, cache size, units, pieces."""
_SUM_LENGTH = 32
_MAX_COUNT = 1 << 27
_CODECS = frozenset(Codec)
_CHECKS = frozenset(Check)
_Code = Literal["Q", "I", "B"]
_UNIT_COLUMNS: tuple[_Code, ...] = ("Q", "I", "I", "I", "I", "B")
_PIECE_COLUMNS: tuple[_Code, ...] = ("I", "I", "Q", "B")

Column = Sequence[int]


class Header(NamedTuple):
    """Sizes in bytes: of the whole source, and of the whole cache file."""

    source_size: int
    cache_size: int


class UnitColumns(NamedTuple):
    """All units of a table at once, for those who have them so; as in the file, but for padding.

    Arrays of the codes that `_UNIT_COLUMNS` and `_PIECE_COLUMNS` have for them.
    """

    source_offset: array[int]
    source_length: array[int]
    cache_block: array[int]
    cache_length: array[int]
    first_piece: array[int]
    codec: array[int]
    inner_offset: array[int]
    length: array[int]
    cache_offset: array[int]
    check: array[int]
    digests: bytes | bytearray


class UnitTable:
    """A mapped table; any number of threads may read it at once.

    Attributes:
        source_size: bytes of the source.
        cache_size: bytes of the cache file; a multiple of `BLOCK`.
        digest: the SHA-256 of the table, which tells it from all others.
    """

    def __init__(self, data: mmap.mmap | bytes | bytearray, source: object = "") -> None:
        """Take a table's bytes; `source` is their file, for errors.

        Raises:
            FormatError: they are not a table, or damaged.
        """
        self._source = source
        self._data = data
        self._view = memoryview(data)
        self._views: list[memoryview] = []
        header, counts = self._read_header()
        self.source_size, self.cache_size = header
        self._units, self._pieces = counts
        self.digest = bytes(self._view[-_SUM_LENGTH:])
        self._read_columns()
        self._check()

    @classmethod
    def open(cls, path: Path) -> UnitTable:
        """Map the table at `path`; `close` unmaps it.

        Raises:
            FormatError: it is not a table, or damaged.
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise FormatError(FORMAT, 0, expected="a header", got="no bytes", source=path)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return cls(mapped, path)

    @staticmethod
    def write(file: BinaryIO, header: Header, units: Iterable[Unit] | UnitColumns) -> bytes:
        """Write a table for units in order of the cache; return its digest. Syncs nothing.

        Raises:
            InvalidArgument: the units break a rule of theirs.
        """
        return _write(file, header, units)

    def close(self) -> None:
        """Unmap the file; whatever is asked of the table afterwards is a ValueError."""
        while self._views:
            self._views.pop().release()
        self._view.release()
        if isinstance(self._data, mmap.mmap):
            self._data.close()

    def __len__(self) -> int:
        return self._units

    def unit(self, number: int) -> Unit:
        """Return a unit with its pieces."""
        first, end = self._first_piece[number], self._first_piece[number + 1]
        pieces = tuple(
            Piece(
                self._inner[piece],
                self._length[piece],
                self._piece_offset[piece],
                Check(self._checks[piece]),
                bytes(self._digests[piece * DIGEST_LENGTH : (piece + 1) * DIGEST_LENGTH]),
            )
            for piece in range(first, end)
        )
        return Unit(
            self._source_offset[number],
            self._source_length[number],
            self._block[number] * BLOCK,
            self._cache_length[number],
            Codec(self._codecs[number]),
            pieces,
        )

    def find(self, start: int, stop: int) -> range:
        """Return the numbers of the units that have cache bytes in [start, stop).

        A unit has the whole blocks that its bytes lie in: what pads them is known only with it.
        """
        if start >= stop:
            return range(0)
        first = bisect_right(self._block, start // BLOCK) - 1
        if first < 0 or start >= self._block_end(first):
            first += 1
        return range(first, max(first, bisect_left(self._block, _blocks(stop))))

    def source_range(self, number: int) -> tuple[int, int]:
        """Return where a unit's encoded bytes start and end in the source."""
        start = self._source_offset[number]
        return start, start + self._source_length[number]

    def cache_range(self, units: range) -> range:
        """Return the cache bytes of the blocks from the first of some units to the last."""
        if not units:
            return range(0)
        return range(self.cache_start(units.start), self._block_end(units.stop - 1))

    def cache_start(self, number: int) -> int:
        """Return where a unit's bytes start in the cache."""
        return self._block[number] * BLOCK

    def cache_length(self, number: int) -> int:
        """Return how many bytes of the cache a unit fills, without what pads them."""
        return self._cache_length[number]

    @property
    def cache_lengths(self) -> Column:
        """`cache_length` of all units."""
        return self._cache_length

    def _block_end(self, number: int) -> int:
        """Return the cache offset behind a unit's last block."""
        return (self._block[number] + _blocks(self._cache_length[number])) * BLOCK

    def _read_header(self) -> tuple[Header, tuple[int, int]]:
        view = self._view
        if len(view) < _HEADER.size + _SUM_LENGTH:
            raise self._error(0, "a header and a checksum", f"{len(view)} bytes")
        magic, version, size, source_size, cache_size, units, pieces = _HEADER.unpack_from(view)
        if magic != MAGIC:
            raise self._error(0, repr(MAGIC), repr(magic))
        if (version, size) != (VERSION, _HEADER.size):
            raise self._error(8, f"version {VERSION}", f"version {version}")
        if units > _MAX_COUNT or not units <= pieces <= _MAX_COUNT:
            raise self._error(
                32, f"up to {_MAX_COUNT}, each unit with a piece", f"{units} units, {pieces} pieces"
            )
        length = _HEADER.size + sum(_column_sizes(units, pieces)) + _SUM_LENGTH
        if len(view) != length:
            raise self._error(len(view), f"{length} bytes", f"{len(view)}")
        if cache_size % BLOCK or cache_size > MAX_CACHE_BYTES:
            raise self._error(24, f"a multiple of {BLOCK} up to {MAX_CACHE_BYTES}", str(cache_size))
        if source_size >= 1 << 63:
            raise self._error(16, "a size below 2^63", str(source_size))
        if hashlib.sha256(view[:-_SUM_LENGTH]).digest() != view[-_SUM_LENGTH:]:
            raise self._error(length - _SUM_LENGTH, "the SHA-256 of all before", "another")
        return Header(source_size, cache_size), (units, pieces)

    def _read_columns(self) -> None:
        position = _HEADER.size
        codes = (*_UNIT_COLUMNS, *_PIECE_COLUMNS)
        columns: list[Column] = []
        sizes = _column_sizes(self._units, self._pieces)
        for code, count, size in zip(codes, self._counts(), sizes, strict=False):
            raw = self._slice(position, count * struct.calcsize(f"<{code}"))
            columns.append(self._column(raw, code))
            position += size
        self._source_offset, self._source_length, self._block = columns[:3]
        self._cache_length, self._first_piece, self._codecs = columns[3:6]
        self._inner, self._length, self._piece_offset, self._checks = columns[6:]
        self._digests = self._slice(position, self._pieces * DIGEST_LENGTH)

    def _slice(self, start: int, length: int) -> memoryview:
        self._views.append(self._view[start : start + length])
        return self._views[-1]

    def _column(self, raw: memoryview, code: _Code) -> Column:
        if sys.byteorder == "little":
            column = raw.cast(code)
            self._views.append(column)
            return column
        swapped = array(code, bytes(raw))
        swapped.byteswap()
        return swapped

    def _counts(self) -> tuple[int, ...]:
        units, pieces = self._units, self._pieces
        return (units, units, units, units, units + 1, units, pieces, pieces, pieces, pieces)

    def _check(self) -> None:
        """Check what readers rely on: everything lies inside of what it belongs to, in order."""
        first = self._first_piece
        # Bounds come first: the checks that follow use these numbers as indexes.
        if first[0] or first[-1] != self._pieces or not _rises(first):
            raise self._error(0, "at least one piece in each unit", "another partition")
        if not (set(self._codecs) <= _CODECS and set(self._checks) <= _CHECKS):
            raise self._error(0, "known codecs and digests", "others: made by a later version?")
        for name, column in (
            ("source length", self._source_length),
            ("cache length", self._cache_length),
            ("piece length", self._length),
        ):
            self._check_lengths(name, column)
        if not _all_at_most(map(operator.add, self._inner, self._length), MAX_UNIT_BYTES):
            raise self._error(0, f"decoded units of at most {MAX_UNIT_BYTES} bytes", "more")
        if not _all_at_most(
            map(operator.add, self._source_offset, self._source_length), self.source_size
        ):
            raise self._error(0, f"units within the {self.source_size} bytes of the source", "more")
        if not _apart(self._block, map(_blocks, self._cache_length), self.cache_size // BLOCK):
            raise self._error(0, "units in order and apart, within the cache", "others")
        if not _apart(self._piece_offset, self._length, self.cache_size):
            raise self._error(0, "pieces in order and apart", "others")
        self._check_borders()

    def _check_lengths(self, name: str, column: Column) -> None:
        smallest, largest = min(column, default=1), max(column, default=1)
        if smallest < 1 or largest > MAX_UNIT_BYTES:
            expected = f"each {name} to be 1 to {MAX_UNIT_BYTES}"
            raise self._error(0, expected, f"{smallest} to {largest}")

    def _check_borders(self) -> None:
        """Check that the pieces of each unit end where it does, and start within it."""
        start_of, length_of = self._piece_offset.__getitem__, self._length.__getitem__
        firsts = map(start_of, itertools.islice(self._first_piece, self._units))
        piece_ends = map(operator.add, map(start_of, self._lasts()), map(length_of, self._lasts()))
        unit_ends = map(operator.add, map(BLOCK.__mul__, self._block), self._cache_length)
        inside = all(map(operator.le, map(BLOCK.__mul__, self._block), firsts))
        if not inside or not all(map(operator.eq, piece_ends, unit_ends)):
            raise self._error(0, "pieces that lie in their unit and end with it", "others")

    def _lasts(self) -> Iterable[int]:
        """Return the number of each unit's last piece."""
        nexts = itertools.islice(self._first_piece, 1, None)
        return map(operator.sub, nexts, itertools.repeat(1))

    def _error(self, offset: int, expected: str, got: str) -> FormatError:
        return FormatError(FORMAT, offset, expected=expected, got=got, source=self._source)


def _column_sizes(units: int, pieces: int) -> list[int]:
    """Return the bytes of each column with its padding, that of the digests last."""
    counts = (units, units, units, units, units + 1, units)
    sizes = [
        count * struct.calcsize(f"<{code}")
        for code, count in zip(_UNIT_COLUMNS, counts, strict=True)
    ]
    sizes += [pieces * struct.calcsize(f"<{code}") for code in _PIECE_COLUMNS]
    return [-(-size // 8) * 8 for size in (*sizes, pieces * DIGEST_LENGTH)]


def _blocks(length: int) -> int:
    """Return how many blocks hold so many bytes."""
    return -(-length // BLOCK)


def _rises(column: Column) -> bool:
    return all(map(operator.lt, column, itertools.islice(column, 1, None)))


def _apart(starts: Column, lengths: Iterable[int], end: int) -> bool:
    """Tell whether no stretch reaches into the next, nor the last beyond `end`."""
    following = itertools.chain(itertools.islice(starts, 1, None), (end,))
    return all(map(operator.le, map(operator.add, starts, lengths), following))


def _all_at_most(values: Iterable[int], most: int) -> bool:
    return max(values, default=0) <= most


def _write(file: BinaryIO, header: Header, units: Iterable[Unit] | UnitColumns) -> bytes:
    columns = units if isinstance(units, UnitColumns) else _columns(units)
    counts = (len(columns.source_offset), len(columns.inner_offset))
    head = _HEADER.pack(
        MAGIC, VERSION, _HEADER.size, header.source_size, header.cache_size, *counts
    )
    data = bytearray(head)
    for column in columns:
        if sys.byteorder == "big" and isinstance(column, array):
            column.byteswap()
        data += column
        data += bytes(-len(data) % 8)
    data += hashlib.sha256(data).digest()
    try:
        UnitTable(data)
    except FormatError as error:
        raise InvalidArgument(f"write a unit table: {error}") from error
    file.write(data)
    return bytes(data[-_SUM_LENGTH:])


def _columns(units: Iterable[Unit]) -> UnitColumns:
    columns = [array(code) for code in (*_UNIT_COLUMNS, *_PIECE_COLUMNS)]
    digests = bytearray()
    for unit in units:
        _append(columns, digests, unit)
    columns[4].append(len(columns[6]))
    return UnitColumns._make([*columns, digests])


def _append(columns: list[array[int]], digests: bytearray, unit: Unit) -> None:
    block, rest = divmod(unit.cache_offset, BLOCK)
    place = (unit.source_offset, unit.source_length, block, unit.cache_length)
    row = (*place, len(columns[6]), unit.codec)
    try:
        if rest or any(len(piece.digest) != DIGEST_LENGTH for piece in unit.pieces):
            raise ValueError(f"not at a multiple of {BLOCK}, or a digest of another length")
        for column, value in zip(columns[:6], row, strict=True):
            column.append(value)
        for piece in unit.pieces:
            for column, value in zip(columns[6:], piece[:4], strict=True):
                column.append(value)
            digests += piece.digest
    except (OverflowError, ValueError) as error:
        raise InvalidArgument(f"write a unit table: {unit!r:.300}: {error}") from error
