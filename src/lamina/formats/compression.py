"""Compressed streams: gzip (RFC 1952) of many members, zstd (RFC 8878) of many frames, plain."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Iterator
from typing import Protocol, cast

from isal import igzip_lib, isal_zlib

from lamina.errors import FormatError

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdCompressor, ZstdDecompressor, ZstdError
else:
    from backports.zstd import ZstdCompressor, ZstdDecompressor, ZstdError

# The stub of isal declares an instance where there is a class.
_GzipFault = cast("type[Exception]", igzip_lib.IsalError)
_GZIP_MAGIC = b"\x1f\x8b\x08"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
"""Bytes 1 to 3 of a skippable frame; byte 0 is 0x50 to 0x5f."""
MAGIC_LENGTH = 4

Read = Callable[[int], bytes]
"""Returns at least one byte and at most as many as asked for; none at the end."""

_GZIP_WBITS = 31
_INPUT = 128 << 10
_OUTPUT = 256 << 10
"""Bytes at a time: a chunk is still in the cache when it is hashed and written."""


class Compression(enum.StrEnum):
    """How a stream is compressed."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


class _Decompressor(Protocol):
    """What bz2 started and every module since has."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def detect(head: bytes) -> Compression:
    """Tell from the first four bytes."""
    if head.startswith(_GZIP_MAGIC):
        return Compression.GZIP
    if head.startswith(_ZSTD_MAGIC) or (head[1:4] == _ZSTD_SKIPPABLE and 0x50 <= head[0] <= 0x5F):
        return Compression.ZSTD
    return Compression.NONE


def decompress(read: Read, *, sniff: bool = True) -> Iterator[bytes]:
    """Yield the uncompressed bytes in chunks of at most 256 KiB.

    Every member and frame up to the end is taken. What follows the last one and is none, padding
    included, is an error, as with Go's reader.

    Args:
        read: the compressed bytes.
        sniff: False where the bytes are known to be uncompressed, whatever they begin with.

    Raises:
        FormatError: the stream is cut off or damaged; its offset counts compressed bytes.
    """
    head = _at_least(read, MAGIC_LENGTH)
    compression = detect(head) if sniff else Compression.NONE
    if compression is Compression.GZIP:
        yield from _members("gzip", _gzip_member, _GzipFault, read, head)
    elif compression is Compression.ZSTD:
        yield from _members("zstd", ZstdDecompressor, ZstdError, read, head)
    else:
        while head:
            yield head
            head = read(_OUTPUT)


def _at_least(read: Read, length: int) -> bytes:
    data = read(_INPUT)
    while data and len(data) < length and (more := read(_INPUT)):
        data += more
    return data


def _gzip_member() -> _Decompressor:
    return igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)


def _members(
    name: str, begin: Callable[[], _Decompressor], fault: type[Exception], read: Read, data: bytes
) -> Iterator[bytes]:
    member = begin()
    consumed = len(data)
    while True:
        try:
            chunk = member.decompress(data, _OUTPUT)
        except fault as error:
            raise FormatError(
                name, consumed, expected=f"{name} data before that", got=str(error)
            ) from error
        if chunk:
            yield chunk
        data = b""
        if member.eof:
            data = member.unused_data or read(_INPUT)
            consumed += 0 if member.unused_data else len(data)
            if not data:
                return
            member = begin()
        elif member.needs_input:
            data = read(_INPUT)
            consumed += len(data)
            if not data:
                raise FormatError(name, consumed, expected="more data", got="the end")


class Compressor(Protocol):
    """A stream being compressed; equal input gives equal output."""

    def compress(self, data: bytes, /) -> bytes:
        """Take more input and return what is ready."""
        ...

    def flush(self) -> bytes:
        """Return the rest; nothing can be added then."""
        ...


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def compressor(compression: Compression) -> Compressor:
    """Begin a stream of one gzip member, one zstd frame, or plain bytes."""
    if compression is Compression.GZIP:
        return isal_zlib.compressobj(isal_zlib.ISAL_BEST_COMPRESSION, wbits=_GZIP_WBITS)
    if compression is Compression.ZSTD:
        return ZstdCompressor()
    return _Plain()
