"""Deflate streams that are decompressed from their middle on.

That begins between two blocks, which may be within a byte: Python's zlib has no `inflatePrime`, so
`prefix` stands in for the bits before.
"""

from __future__ import annotations

from typing import NamedTuple

WINDOW = 1 << 15
"""Bytes of output that what follows may refer to."""

_FIXED = (0b0000000_01_0, 10)
"""A deflate block of ten bits with nothing in it: not the last, fixed codes, end of block."""


class Point(NamedTuple):
    """A place to begin at.

    Attributes:
        out_offset: bytes of output before it.
        in_offset: byte of the stream.
        bits: how many high bits of the byte before belong to what follows.
        byte: that byte.
        window: the output before it, as far as what follows may refer to it; empty at the first
            block of a gzip member.
    """

    out_offset: int
    in_offset: int
    bits: int
    byte: int
    window: bytes


def prefix(byte: int, bits: int) -> bytes:
    """Return empty deflate blocks that end within a byte, filled up with the high bits of `byte`.

    So the data that follows begins with a byte, as it does in the blob.
    """
    if not bits:
        return b""
    value, length = (0, 0) if bits % 2 == 0 else _dynamic_block()
    while (length + bits) % 8:
        value |= _FIXED[0] << length
        length += _FIXED[1]
    value |= byte >> 8 - bits << length
    return value.to_bytes((length + bits) // 8, "little")


def _dynamic_block() -> tuple[int, int]:
    """Return an empty deflate block of an odd number of bits (93), and that number.

    Its codes: of the code lengths, 18 (many zeros) and 1 have one bit each; 256 literals have no
    code, the end of the block and one distance have one bit each.
    """
    fields = [(0, 1), (2, 2), (0, 5), (0, 5), (15, 4)]
    order = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
    fields += [(int(symbol in {1, 18}), 3) for symbol in order]
    # Of two codes of one bit, the lower symbol (1) has 0 and the higher (18) has 1.
    fields += [(1, 1), (138 - 11, 7), (1, 1), (118 - 11, 7), (0, 1), (0, 1)]
    fields += [(0, 1)]
    value = length = 0
    for number, size in fields:
        value |= number << length
        length += size
    return value, length
