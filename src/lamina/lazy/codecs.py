"""Decoding one unit, to a length that is known before."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol, cast

from isal import igzip_lib

from lamina.errors import FormatError
from lamina.lazy.unit import Codec

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdDecompressor, ZstdError
else:
    from backports.zstd import ZstdDecompressor, ZstdError

# The stub of isal declares an instance where there is a class.
_GzipFault = cast("type[Exception]", igzip_lib.IsalError)

Buffer = bytes | memoryview


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
    most, and touches as much of it as it decodes.

    Raises:
        FormatError: it is damaged, or ends before that; its offset counts decoded bytes.
    """
    if codec is Codec.GZIP:
        return _members("gzip", _gzip_member, _GzipFault, data, length)
    if codec is Codec.ZSTD:
        return _members("zstd", ZstdDecompressor, ZstdError, data, length)
    if len(data) < length:
        raise _short("stored bytes", len(data), length)
    return data[:length]


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
