"""Decoding one unit, to a length that is known before."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol, cast

import lz4.block
from isal import igzip_lib

from lamina.errors import FormatError
from lamina.lazy.unit import MAX_UNIT_BYTES, Codec, Unit

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdDecompressor, ZstdError
else:
    from backports.zstd import ZstdDecompressor, ZstdError

# The stub of isal declares an instance where there is a class; lz4 has no types.
_GzipFault = cast("type[Exception]", igzip_lib.IsalError)
_Lz4Fault = cast("type[Exception]", lz4.block.LZ4BlockError)
_lz4 = cast("Callable[..., bytes]", lz4.block.decompress)
_LZ4_RATIO = 255
"""Most that a byte of an LZ4 block can become."""

Buffer = bytes | memoryview
Decoder = Callable[[Unit, Buffer, int], Buffer]
"""Returns the first bytes of a unit, so many, given its encoded bytes; raises as `decode`."""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def decode(codec: Codec, data: Buffer, length: int) -> Buffer:
    """Return the first `length` decoded bytes of `data`.

    Nothing beyond them is decoded: checksums at the end of a member or frame are not looked at,
    since digests say more. However small `data` is and whatever it claims, no more than `length`
    bytes are written; zstd reserves address space for the window that a frame asks for, 128 MiB at
    most, and touches as much of it as it decodes. An LZ4 block that is longer is decoded whole, to
    at most 255 times its bytes, or 512 MiB.

    Raises:
        FormatError: it is damaged, or ends before that; its offset counts decoded bytes.
    """
    if codec is Codec.GZIP:
        return _members("gzip", _gzip_member, _GzipFault, data, length)
    if codec is Codec.ZSTD:
        return _members("zstd", ZstdDecompressor, ZstdError, data, length)
    if codec is Codec.LZ4_BLOCK:
        return _lz4_block(data, length)
    if codec is Codec.ZRAN:
        raise FormatError("zran", 0, expected="a source that tells how to begin", got="none")
    if len(data) < length:
        raise _short("stored bytes", len(data), length)
    return data[:length]


def decode_alone(unit: Unit, data: Buffer, length: int) -> Buffer:
    """Decode a unit that needs nothing but its own bytes."""
    return decode(unit.codec, data, length)


def _lz4_block(data: Buffer, length: int) -> Buffer:
    """Decode a block that has `length` bytes, as a rule, or more."""
    if not length:
        return b""
    decoded: Buffer
    try:
        decoded = _lz4(data, uncompressed_size=length)
    except _Lz4Fault:
        decoded = _longer_lz4_block(data, length)
    if len(decoded) < length:
        raise _short("lz4", len(decoded), length)
    return decoded


def _longer_lz4_block(data: Buffer, length: int) -> Buffer:
    bound = max(length, min(len(data) * _LZ4_RATIO, MAX_UNIT_BYTES))
    try:
        return memoryview(_lz4(data, uncompressed_size=bound))[:length]
    except _Lz4Fault as error:
        raise FormatError("lz4", 0, expected="lz4 data before that", got=str(error)) from error


def _gzip_member() -> _Decompressor:
    return igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)


def _members(
    name: str,
    begin: Callable[[], _Decompressor],
    fault: type[Exception],
    data: Buffer,
    length: int,
) -> Buffer:
    parts: list[bytes] = []
    done = 0
    rest = bytes(data)
    while done < length:
        if not rest:
            raise _short(name, done, length)
        member = begin()
        while done < length and not member.eof:
            try:
                part = member.decompress(rest, length - done)
            except fault as error:
                expected = f"{name} data before that"
                raise FormatError(name, done, expected=expected, got=str(error)) from error
            rest = b""
            if not part and not member.eof:
                raise _short(name, done, length)
            parts.append(part)
            done += len(part)
        rest = member.unused_data if member.eof else b""
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _short(name: str, done: int, length: int) -> FormatError:
    return FormatError(name, done, expected=f"{length} decoded bytes", got="the end")
