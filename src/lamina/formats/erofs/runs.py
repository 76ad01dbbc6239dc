"""Where the data of an inode lies."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from lamina.formats.erofs.inodes import NOWHERE, Node
from lamina.formats.erofs.layout import (
    CHUNK_INDEX,
    EROFS_CHUNK_FORMAT_BLKBITS_MASK,
    EROFS_CHUNK_FORMAT_INDEXES,
    EROFS_INODE_CHUNK_BASED,
    EROFS_INODE_FLAT_INLINE,
    EROFS_NULL_ADDR,
)
from lamina.formats.erofs.metadata import damaged
from lamina.formats.erofs.tree import HOLE, Extent
from lamina.formats.erofs.volume import Volume

_BATCH = 4096
"""Chunks whose places are read at a time."""
_BLOCK_NUMBER = struct.Struct("<I")
"""What stands for a chunk where all of them are in the image itself."""


def runs(volume: Volume, node: Node, start: int, stop: int) -> Iterator[Extent]:
    """Yield where bytes `start` to `stop` lie, which the file has, in order.

    Every run but the last ends at the end of a block of the file.

    Raises:
        FormatError: they lie outside the image or its devices.
    """
    if node.layout == EROFS_INODE_CHUNK_BASED:
        return _chunk_runs(volume, node, start, stop)
    return _flat_runs(volume, node, start, stop)


def _flat_runs(volume: Volume, node: Node, start: int, stop: int) -> Iterator[Extent]:
    blocks = -(-node.size // volume.block)
    if node.layout == EROFS_INODE_FLAT_INLINE:
        blocks -= 1
    border = blocks * volume.block
    end = min(stop, border)
    if start < end:
        if node.data == NOWHERE:
            yield Extent(end - start, HOLE, 0)
        else:
            offset = (node.data << volume.block_bits) + start
            yield volume.place(end - start, 0, offset, node.at)
        start = end
    if start < stop:
        tail = node.size - border
        if node.tail_at % volume.block + tail > volume.block:
            expected = f"a tail of {tail} bytes in one block"
            raise damaged(node.at, expected, f"one from byte {node.tail_at} on")
        offset = node.tail_at + start - border
        volume.metadata.check(offset, stop - start, "tail")
        yield Extent(stop - start, 0, offset)


def _chunk_runs(volume: Volume, node: Node, start: int, stop: int) -> Iterator[Extent]:
    bits = volume.block_bits + (node.data & EROFS_CHUNK_FORMAT_BLKBITS_MASK)
    at, unit = _table(node)
    chunks = range(start >> bits, -(-stop >> bits))
    volume.metadata.check(at, chunks.stop * unit, "table of chunks")
    for first in chunks[::_BATCH]:
        count = min(_BATCH, chunks.stop - first)
        raw = volume.metadata.read(at + first * unit, count * unit, "table of chunks")
        for number, (device, block) in enumerate(_places(raw, unit), first):
            inside = max(start - (number << bits), 0)
            length = min(stop - (number << bits), 1 << bits) - inside
            if block == EROFS_NULL_ADDR:
                yield Extent(length, HOLE, 0)
                continue
            offset = (block << volume.block_bits) + inside
            yield volume.place(length, device & volume.device_mask, offset, at + number * unit)


def _table(node: Node) -> tuple[int, int]:
    """Return where the places of a file's chunks are, and the bytes of each."""
    unit = CHUNK_INDEX.size if node.data & EROFS_CHUNK_FORMAT_INDEXES else _BLOCK_NUMBER.size
    return -(-node.tail_at // unit) * unit, unit


def _places(raw: bytes, unit: int) -> Iterator[tuple[int, int]]:
    """Yield device and first block of each chunk."""
    if unit == _BLOCK_NUMBER.size:
        for (block,) in _BLOCK_NUMBER.iter_unpack(raw):
            yield 0, block
    else:
        for _startblk_hi, device, block in CHUNK_INDEX.iter_unpack(raw):
            yield device, block


def table_size(volume: Volume, node: Node) -> int:
    """Return the bytes that the places of a file's chunks take in the image."""
    if node.layout != EROFS_INODE_CHUNK_BASED:
        return 0
    bits = volume.block_bits + (node.data & EROFS_CHUNK_FORMAT_BLKBITS_MASK)
    return -(-node.size >> bits) * _table(node)[1]


def merged(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Yield the extents with those made one that follow each other on their device too."""
    last: Extent | None = None
    for extent in extents:
        if last is None:
            last = extent
        elif extent.device == last.device and (
            extent.device == HOLE or last.offset + last.length == extent.offset
        ):
            last = Extent(last.length + extent.length, last.device, last.offset)
        else:
            yield last
            last = extent
    if last is not None:
        yield last
