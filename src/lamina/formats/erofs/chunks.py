"""Where a regular file's data lies: as one run of blocks, or as chunks of equal size."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from lamina.formats.erofs.layout import (
    BLOCK_BITS,
    CHUNK_INDEX,
    EROFS_CHUNK_FORMAT_BLKBITS_MASK,
    EROFS_CHUNK_FORMAT_INDEXES,
    EROFS_NULL_ADDR,
)
from lamina.formats.erofs.tree import BLOCK, HOLE, Extent
from lamina.formats.erofs.unfit import Unfit

MAX_CHUNKS = 1 << 28
"""Of one file: 2 GiB of indexes, for a file of 1 TiB whose chunks have one block."""
_BATCH = 8192
"""Indexes made at a time."""
_HOLE_INDEX = CHUNK_INDEX.pack(0xFFFF, 0, EROFS_NULL_ADDR)


def check_extents(extents: Sequence[Extent], size: int, devices: Sequence[range]) -> None:
    """Refuse extents that are not blocks of the devices, or not all of the file.

    Args:
        extents: as an inode has them.
        size: bytes of the file.
        devices: bytes that can hold data: of the image, then of each extra device.

    Raises:
        Unfit: one is misplaced.
    """
    total = 0
    for length, device, offset in extents:
        if length <= 0 or total % BLOCK:
            raise Unfit(f"an extent of {length} bytes begins at byte {total} of the file")
        total += length
        if device == HOLE:
            continue
        if not 0 <= device < len(devices):
            raise Unfit(f"an extent lies on device {device} of {len(devices) - 1}")
        room = devices[device]
        if offset % BLOCK or not room.start <= offset <= room.stop - length:
            place = f"bytes {offset} to {offset + length} of device {device}"
            raise Unfit(f"an extent lies at {place}, which has {room.start} to {room.stop}")
    if total != size:
        raise Unfit(f"its extents have {total} bytes, and it has {size}")


def merge_extents(extents: Sequence[Extent]) -> Sequence[Extent]:
    """Return the extents with those made one that follow each other on their device too."""
    if len(extents) < 2:
        return extents
    merged = [extents[0]]
    for extent in extents[1:]:
        length, device, offset = merged[-1]
        if extent.device == device and (device == HOLE or offset + length == extent.offset):
            merged[-1] = Extent(length + extent.length, device, offset)
        else:
            merged.append(extent)
    return merged


def plain_run(merged: Sequence[Extent]) -> Extent | None:
    """Return where a file lies that is one run of blocks, else None; an empty one is at 0."""
    if not merged:
        return Extent(0, 0, 0)
    if len(merged) == 1 and merged[0].device != HOLE:
        return merged[0]
    return None


def chunk_bits(merged: Sequence[Extent], size: int) -> int:
    """Return the binary logarithm of the largest chunk, in blocks, that all extents begin at.

    Raises:
        Unfit: that makes more than MAX_CHUNKS.
    """
    bits = max(size - 1, 0).bit_length()
    start = starts = 0
    for extent in merged[:-1]:
        start += extent.length
        starts |= start
    if starts:
        bits = min(bits, (starts & -starts).bit_length() - 1)
    bits = min(max(bits - BLOCK_BITS, 0), EROFS_CHUNK_FORMAT_BLKBITS_MASK)
    if chunk_count(size, bits) > MAX_CHUNKS:
        raise Unfit(f"its extents make chunks of {BLOCK << bits} bytes, over {MAX_CHUNKS} of them")
    return bits


def chunk_count(size: int, bits: int) -> int:
    """Return how many indexes a file has."""
    return -(-size // (BLOCK << bits))


def chunk_format(bits: int) -> int:
    """Return what the inode says of its chunks."""
    return EROFS_CHUNK_FORMAT_INDEXES | bits


def chunk_indexes(merged: Sequence[Extent], bits: int) -> Iterator[bytes]:
    """Yield the indexes, some at a time."""
    step = 1 << bits
    for extent in merged:
        count = chunk_count(extent.length, bits)
        if extent.device == HOLE:
            yield _HOLE_INDEX * count
            continue
        if count == 1:
            yield CHUNK_INDEX.pack(0, extent.device, extent.offset // BLOCK)
            continue
        block, device = extent.offset // BLOCK, extent.device << 16
        for first in range(0, count, _BATCH):
            here = min(_BATCH, count - first)
            words: list[int] = [device] * (2 * here)
            words[1::2] = range(block + first * step, block + (first + here) * step, step)
            yield struct.pack(f"<{2 * here}I", *words)
