"""Parts of a gzip stream, decompressed from their middle on.

A context is a place between two deflate blocks: the byte there, how many of the bits before it
belong to what follows, and the 32 KiB of output before it as dictionary.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple, Protocol

from lamina.errors import FormatError
from lamina.formats.rafs.chunk_data import Buffer
from lamina.formats.rafs.flags import damaged

MAX_DICTIONARY = 1 << 15
MAX_INPUT = 1 << 25
MAX_OUTPUT = 1 << 24
"""Bytes that a context has at most."""

_RAW = -15
_GZIP = 31
_TRAILER = 8
_MAGIC = b"\x1f\x8b\x08"
_STEP = 1 << 14
"""Bytes given to zlib at a time: at the end of a member it copies what is left of them."""
_SMALL = 512
_FEW = 16
"""Members that a context may have: one for each tar header, and some that are empty."""
_FIXED = (0b0000000_01_0, 10)
"""A deflate block of ten bits with nothing in it: not the last, fixed codes, end of block."""


class ZranContext(NamedTuple):
    """A place in a gzip blob.

    Attributes:
        in_offset: byte of the blob.
        in_size: bytes there.
        out_offset: byte of the uncompressed stream.
        out_size: bytes there.
        dictionary: the output before it, if need be.
        byte: the byte before `in_offset`.
        bits: how many of its high bits belong to what follows.
    """

    in_offset: int
    in_size: int
    out_offset: int
    out_size: int
    dictionary: Buffer
    byte: int
    bits: int


def inflate(context: ZranContext, data: Buffer) -> bytes:
    """Return the output of a context, `out_size` bytes.

    Args:
        context: as `blob.meta` has it.
        data: `in_size` bytes of the blob, from `in_offset` on.

    Raises:
        FormatError: it is damaged, or ends before that; its offset is the blob's.
    """
    # Where a member ends with what the builder looked for, as each does in an eStargz layer, the
    # context is behind its last block: a trailer follows, and the next member.
    if bytes(data[_TRAILER : _TRAILER + len(_MAGIC)]) == _MAGIC:
        try:
            return _inflate(context, zlib.decompressobj(_GZIP), bytes(data[_TRAILER:]), 0)
        except FormatError:
            pass  # what looks like a member may be data
    stream = _prefix(context.byte, context.bits) + bytes(data)
    member = zlib.decompressobj(_RAW, bytes(context.dictionary))
    # The header of the first member lies before the context, so that zlib leaves its trailer.
    return _inflate(context, member, stream, _TRAILER)


class _Member(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: Buffer, max_length: int = 0, /) -> bytes: ...


def _inflate(context: ZranContext, member: _Member, data: bytes, trailer: int) -> bytes:
    """Return the output of a member and those that follow it.

    Args:
        context: that of the first.
        member: at the beginning of `data`.
        data: up to where no more output is needed, at least.
        trailer: bytes behind the first member that zlib leaves.

    Raises:
        FormatError: it is damaged, or ends before that.
    """
    stream = memoryview(data)
    members = _FEW + context.out_size // _SMALL
    parts: list[bytes] = []
    left = context.out_size
    at = 0
    while left:
        step = stream[at : at + _STEP]
        try:
            part = member.decompress(step, left)
        except zlib.error as error:
            raise damaged(context.in_offset, "gzip data", error) from error
        parts.append(part)
        left -= len(part)
        at += len(step)
        if member.eof:
            at += trailer - len(member.unused_data)
            member, trailer = zlib.decompressobj(_GZIP), 0
            members -= 1
        if left and (at >= len(stream) or not members):
            raise damaged(context.in_offset, f"{left} more bytes in few gzip members", "none")
    return b"".join(parts)


def _prefix(byte: int, bits: int) -> bytes:
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
