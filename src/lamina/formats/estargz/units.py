"""What is fetched and decoded at a time, and where the decoded bytes lie in a cache file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lamina.errors import FormatError
from lamina.formats.erofs.tree import BLOCK
from lamina.formats.estargz.files import Contents, File, entry_error

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


class Layout(NamedTuple):
    """What `lay_out` returns.

    Attributes:
        units: in the order of the blob, which is that of the cache too.
        places: where the data of each file starts in the cache, by path; none of empty files.
        cache_size: a multiple of BLOCK.
    """

    units: list[Unit]
    places: dict[bytes, int]
    cache_size: int


@dataclass(slots=True)
class _Open:
    """A unit that may grow.

    Attributes:
        start: byte of the blob.
        stream: where its last stream starts.
        base: decoded bytes of the streams before that.
        decoded: up to the end of the last piece.
    """

    start: int
    stream: int
    base: int = 0
    decoded: int = 0
    pieces: list[Piece] = field(default_factory=list)


def lay_out(contents: Contents, *, require_digests: bool = True) -> Layout:
    """Give each file a place in the cache, block-aligned and without gaps, in blob order.

    A chunk that starts within a block shares it with the one before, so that both are one unit: of
    a file whose chunk size is no multiple of BLOCK, streams are joined until one starts with a
    block. A file's streams follow each other directly, and decode to its bytes without a gap.

    Zeros that reach from one block into another are of no unit: nothing is ever written there, and
    the blocks that they share with other chunks are padded with zeros. Those within a block are
    decoded as any chunk, since the ones behind them are in the same unit.

    Raises:
        FormatError: chunks overlap or are not in the order of the blob, a unit or all of them
            together are too large, or a chunk has no digest though it must.
    """
    files = sorted(
        (file for file in contents.files.values() if file.chunks),
        key=lambda file: file.chunks[0][:2],
    )
    return _Planner(contents, require_digests).plan(files)


class _Planner:
    def __init__(self, contents: Contents, require_digests: bool) -> None:
        self._contents = contents
        self._require_digests = require_digests
        self._open: _Open | None = None
        self._ended = -1  # the stream of a unit that a hole has ended
        self._units: list[Unit] = []

    def plan(self, files: Iterable[File]) -> Layout:
        places: dict[bytes, int] = {}
        position = 0
        for file in files:
            places[file.path] = position
            self._add(file, position)
            position += -(-file.entry.size // BLOCK) * BLOCK
            if position > MAX_CACHE:
                raise entry_error(
                    file.number, file.entry, "size", f"at most {MAX_CACHE} bytes up to it", position
                )
        self._close()
        return Layout(self._units, places, position)

    def _add(self, file: File, position: int) -> None:
        for stream, inner, offset, length, digest, is_zeros in file.chunks:
            if is_zeros and _is_hole(offset, length):
                self._end()
                continue
            if self._require_digests and not digest:
                raise self._error(file, "chunkDigest", "a digest of each chunk", "none")
            unit = self._unit(file, stream, position + offset)
            if unit.base + inner < unit.decoded:
                raise self._error(file, "innerOffset", f"{unit.decoded - unit.base} or more", inner)
            unit.pieces.append(Piece(unit.base + inner, length, position + offset, digest))
            unit.decoded = unit.base + inner + length
            size = max(unit.decoded, self._contents.stream_end(stream) - unit.start)
            if size > MAX_UNIT:
                raise self._error(file, "chunkSize", f"units of at most {MAX_UNIT} bytes", size)

    def _unit(self, file: File, stream: int, position: int) -> _Open:
        """Return the unit that a stream belongs to; `position` is where its chunk goes."""
        unit = self._open
        if unit is not None and stream == unit.stream:
            return unit
        least = self._ended + 1 if unit is None else unit.stream
        if stream < least:
            raise self._error(file, "offset", f"{least} or more", stream)
        if unit is None or not position % BLOCK:
            self._close()
            self._open = _Open(stream, stream)
            return self._open
        if stream != self._contents.stream_end(unit.stream):
            raise self._error(file, "offset", "the stream that follows", stream)
        unit.stream = stream
        unit.base = unit.decoded
        return unit

    def _end(self) -> None:
        """Close the unit where a hole begins: none that follows may need the same stream."""
        if self._open is not None:
            self._ended = self._open.stream
        self._close()

    def _close(self) -> None:
        unit = self._open
        if unit is None:
            return
        start = unit.pieces[0].cache_offset // BLOCK * BLOCK
        last = unit.pieces[-1]
        self._units.append(
            Unit(
                unit.start,
                self._contents.stream_end(unit.stream) - unit.start,
                start,
                last.cache_offset + last.length - start,
                tuple(unit.pieces),
            )
        )
        self._open = None

    @staticmethod
    def _error(file: File, field: str, expected: str, got: object) -> FormatError:
        return entry_error(file.number, file.entry, field, expected, got)


def _is_hole(offset: int, length: int) -> bool:
    """Tell whether there is an edge of a block between both ends of a chunk, or at one."""
    return -(-offset // BLOCK) <= (offset + length) // BLOCK
