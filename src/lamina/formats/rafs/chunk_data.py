"""The bytes of chunks: decompressed to a length that is known before, and verified."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol, cast

import lz4.block
from isal import igzip_lib

from lamina.errors import DigestMismatch, FormatError
from lamina.formats.rafs.digests import digest_of
from lamina.formats.rafs.flags import FORMAT, Compressor, Digester
from lamina.formats.rafs.model import Chunk

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdDecompressor, ZstdError
else:
    from backports.zstd import ZstdDecompressor, ZstdError

Buffer = bytes | memoryview

# The stub of isal declares an instance where there is a class; lz4 has no types.
_GzipFault = cast("type[Exception]", igzip_lib.IsalError)
_Lz4Fault = cast("type[Exception]", lz4.block.LZ4BlockError)
_lz4 = cast("Callable[..., bytes]", lz4.block.decompress)


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    def decompress(self, data: Buffer, max_length: int = -1) -> bytes: ...


def decompress(compressor: Compressor, data: Buffer, size: int) -> Buffer:
    """Return the uncompressed bytes, `size` of them; whatever `data` says, no more are made.

    Raises:
        FormatError: it is damaged, or has another number of bytes; its offset counts bytes of
            `data` for LZ4, else uncompressed ones.
    """
    if compressor is Compressor.LZ4_BLOCK:
        return _lz4_block(data, size)
    if compressor is Compressor.GZIP:
        gzip = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)
        return _member("gzip", gzip, _GzipFault, data, size)
    if compressor is Compressor.ZSTD:
        return _member("zstd", ZstdDecompressor(), ZstdError, data, size)
    if len(data) != size:
        raise _wrong("stored", 0, size, f"{len(data)} bytes")
    return data


def verify_chunk(digester: Digester, chunk: Chunk, data: Buffer) -> None:
    """Compare a chunk's uncompressed bytes with its digest.

    Raises:
        DigestMismatch: they are others.
    """
    got = digest_of(digester, data)
    if got != chunk.digest:
        subject = f"{chunk.number} of blob {chunk.blob}"
        expected = chunk.digest.hex()
        raise DigestMismatch("verify RAFS chunk", subject, expected=expected, got=got.hex())


def _lz4_block(data: Buffer, size: int) -> bytes:
    try:
        found = _lz4(data, uncompressed_size=size)
    except _Lz4Fault as error:
        raise _wrong("lz4", 0, size, str(error)) from error
    if len(found) != size:
        raise _wrong("lz4", len(data), size, f"{len(found)} bytes")
    return found


def _member(
    name: str, member: _Decompressor, fault: type[Exception], data: Buffer, size: int
) -> bytes:
    """Return what one gzip member or zstd frame has: a chunk is no more."""
    parts: list[bytes] = []
    done = 0
    rest = data
    while done < size:
        try:
            part = member.decompress(rest, size - done) if not member.eof else b""
        except fault as error:
            raise _wrong(name, done, size, str(error)) from error
        if not part:
            raise _wrong(name, done, size, "the end")
        rest = b""
        parts.append(part)
        done += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _wrong(name: str, at: int, size: int, got: str) -> FormatError:
    return FormatError(FORMAT, at, expected=f"{size} bytes of {name} data", got=got)
