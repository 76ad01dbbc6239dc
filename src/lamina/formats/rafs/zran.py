"""Parts of a gzip stream, decompressed from their middle on.

A context is a place between two deflate blocks: the byte there, how many of the bits before it
belong to what follows, and the 32 KiB of output before it as dictionary.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple, Protocol

from lamina.errors import FormatError
from lamina.formats.deflate import prefix
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
    stream = prefix(context.byte, context.bits) + bytes(data)
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
