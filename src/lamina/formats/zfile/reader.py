"""The uncompressed bytes of a ZFile, block by block at any place."""

from __future__ import annotations

import operator
import sys
from array import array
from itertools import accumulate, islice

from lamina.core.source import RangeSource
from lamina.errors import OutOfRange
from lamina.formats.crc32c import crc32c
from lamina.formats.zfile.blocks import Buffer, decompress_block, decompress_lz4_blocks
from lamina.formats.zfile.layout import (
    CRC,
    CRC_SEED,
    LENGTH,
    MAX_BLOCKS,
    SLOT,
    Algorithm,
    Flags,
    Record,
    damaged,
    parse_record,
)

_GROUP = 16
"""Blocks for each of which one place is kept: the others follow from lengths."""
_BATCH = 1 << 20
"""Stored bytes that are read at once, or those of one block."""
_TABLE_PIECE = 1 << 20


class ZFile:
    """A source of the uncompressed bytes; what is read is verified by the CRCs, if there are any.

    Whoever reads several places at once asks `stored` where blocks are in `stored_source`, and has
    `decode` make uncompressed bytes of them.

    Attributes:
        stored_source: the file itself.
        algorithm: how blocks are compressed.
        block_size: bytes of an uncompressed block.
        size: bytes of the uncompressed file.
    """

    def __init__(self, source: RangeSource, record: Record, lengths: array[int]) -> None:
        """Use `read_zfile`."""
        self.stored_source = source
        self._lengths = lengths
        ends = accumulate(lengths, initial=SLOT)
        self._starts = array("Q", islice(ends, 0, None, _GROUP))
        self._crc = bool(record.has_crc)
        self.algorithm = Algorithm(record.algorithm)
        self.block_size = record.block_size
        self.size = record.size

    @property
    def blocks(self) -> int:
        """How many there are."""
        return len(self._lengths)

    @property
    def has_crc(self) -> bool:
        """Whether blocks can be verified."""
        return self._crc

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` uncompressed bytes from byte `offset` on.

        Raises:
            FormatError: a block is damaged; its offset counts stored bytes.
            OutOfRange: the range does not lie inside the uncompressed file.
            Unavailable: the stored bytes cannot be had just now.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OutOfRange(f"read {length} bytes at {offset} of a ZFile of {self.size}")
        if not length:
            return b""
        first, last = offset // self.block_size, (offset + length - 1) // self.block_size
        parts: list[bytes] = []
        block = first
        while block <= last:
            stop = self._batch(block, last)
            start, stored = self.stored(block, stop)
            parts.append(self.decode(block, stop, self.stored_source.read_at(start, stored)))
            block = stop
        skipped = offset - first * self.block_size
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return data if len(data) == length else data[skipped : skipped + length]

    def stored(self, first: int, stop: int) -> tuple[int, int]:
        """Return where blocks from `first` on and before `stop` are: byte of the file, and length.

        There must be at least one, and all must exist.
        """
        group = first // _GROUP
        start = self._starts[group] + sum(self._lengths[group * _GROUP : first])
        return start, sum(self._lengths[first:stop])

    def decode(self, first: int, stop: int, data: Buffer) -> bytes:
        """Return the uncompressed bytes of blocks from `first` on and before `stop`.

        Args:
            first: number of a block, from 0 on.
            stop: that of the block behind the last.
            data: what is `stored` of them.

        Raises:
            FormatError: a block is damaged; its offset counts stored bytes.
        """
        start, stored = self.stored(first, stop)
        if len(data) != stored:
            raise damaged(start, f"{stored} bytes of blocks", len(data))
        blocks = self._verified(first, stop, bytes(data), start)
        size = min(stop * self.block_size, self.size) - first * self.block_size
        if self._crc and self.algorithm is Algorithm.LZ4 and len(blocks) > 1 and all(blocks):
            found = decompress_lz4_blocks(blocks, self.block_size, size)
            if found is not None:
                return found
        parts = []
        position = start
        for block, compressed in enumerate(blocks, first):
            left = min(self.block_size, self.size - block * self.block_size)
            parts.append(decompress_block(self.algorithm, compressed, left, position))
            position += self._lengths[block]
        return b"".join(parts)

    def _verified(self, first: int, stop: int, data: bytes, start: int) -> list[bytes]:
        """Return what is compressed of each block, given all of them and the first one's byte."""
        lengths = self._lengths[first:stop]
        ends = [*accumulate(lengths)]
        if not self._crc:
            starts = map(operator.sub, ends, lengths)
            return [data[start:end] for start, end in zip(starts, ends, strict=True)]
        blocks: list[bytes] = []
        position = 0
        for end in ends:
            compressed = data[position : end - CRC.size]
            got = crc32c(CRC_SEED, compressed)
            (expected,) = CRC.unpack_from(data, end - CRC.size)
            if got != expected:
                block, at = first + len(blocks), start + position
                raise damaged(at, f"block {block} with CRC-32C {expected:#010x}", f"{got:#010x}")
            blocks.append(compressed)
            position = end
        return blocks

    def _batch(self, first: int, last: int) -> int:
        """Return the block to stop before, so that no more than a batch is read at once."""
        stop, stored = first, 0
        while stop <= last:
            stored += self._lengths[stop]
            if stored > _BATCH and stop > first:
                break
            stop += 1
        return stop


def read_zfile(source: RangeSource) -> ZFile:
    """Read the header and the jump table, and the trailer if the header leads to it.

    The source must stay as long as what is returned is used.

    Raises:
        FormatError: it is no ZFile, is damaged or cut off, or has what is not supported.
        Unavailable: the bytes cannot be had just now.
    """
    if source.size < 2 * SLOT:
        raise damaged(0, "a header and a trailer", f"{source.size} bytes")
    end = source.size - SLOT
    record = parse_record(source.read_at(0, SLOT), 0)
    if not record.flags & Flags.HEADER:
        raise damaged(32, "flags of a header", f"{record.flags:#x}")
    at = 0
    if not record.flags & Flags.OVERWRITTEN:
        if not record.flags & Flags.DATA:
            raise damaged(32, "flags of a data file", f"{record.flags:#x}")
        record = _trailer(source, record)
        at = end
    room = end - record.index_offset
    if not SLOT <= record.index_offset <= end or record.blocks * LENGTH.size > room:
        got = f"{record.blocks} blocks at byte {record.index_offset}"
        raise damaged(at + 40, f"a jump table between bytes {SLOT} and {end}", got)
    blocks = -(-record.size // record.block_size)
    if record.blocks != blocks:
        raise damaged(at + 48, f"{blocks} blocks for {record.size} bytes", record.blocks)
    if record.blocks > MAX_BLOCKS:
        raise damaged(at + 48, f"at most {MAX_BLOCKS} blocks", record.blocks)
    return ZFile(source, record, _jump_table(source, record))


def _trailer(source: RangeSource, header: Record) -> Record:
    at = source.size - SLOT
    trailer = parse_record(source.read_at(at, SLOT), at)
    if trailer.flags & (Flags.HEADER | Flags.DATA | Flags.SEALED) != Flags.DATA | Flags.SEALED:
        raise damaged(at + 32, "flags of a sealed trailer", f"{trailer.flags:#x}")
    for field in ("block_size", "algorithm", "has_crc"):
        expected, got = getattr(header, field), getattr(trailer, field)
        if got != expected:
            raise damaged(at, f"the header's {field}, {expected}", got)
    return trailer


def _jump_table(source: RangeSource, record: Record) -> array[int]:
    lengths = array("I")
    assert lengths.itemsize == LENGTH.size
    crc = 0
    position, end = record.index_offset, record.index_offset + record.blocks * LENGTH.size
    while position < end:
        piece = source.read_at(position, min(_TABLE_PIECE, end - position))
        crc = crc32c(crc, piece)
        lengths.frombytes(piece)
        position += len(piece)
    if sys.byteorder == "big":
        lengths.byteswap()
    at = record.index_offset
    if record.flags & Flags.DIGEST and crc != record.index_crc:
        raise damaged(at, f"a jump table with CRC-32C {record.index_crc:#010x}", f"{crc:#010x}")
    least = 1 + (CRC.size if record.has_crc else 0)
    most = 2 * record.block_size
    for found in (min(lengths, default=least), max(lengths, default=least)):
        if not least <= found <= most:
            place = at + LENGTH.size * lengths.index(found)
            raise damaged(place, f"a block of {least} to {most} bytes", found)
    if (total := SLOT + sum(lengths)) > at:
        raise damaged(at, f"blocks that end by byte {at}", f"some up to byte {total}")
    return lengths
