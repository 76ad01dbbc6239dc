"""Footers: the last bytes of a blob, which say where its table of contents lies.

Three are an empty gzip member (RFC 1952) whose extra field speaks:

    1f 8b 08 04  00 00 00 00  00 ff  XLEN  EXTRA  01 00 00 ff ff  00 00 00 00 00 00 00 00

    eStargz        51 bytes   EXTRA = "SG", 22, 16 hex digits of the offset, "STARGZ"
    legacy stargz  47 bytes   EXTRA = 16 hex digits of the offset, "STARGZ"
    external TOC   46 bytes   EXTRA = "SG", 17, "STARGZEXTERNALTOC"

XLEN and the length after "SG" are 16 bits, little-endian. The fourth, of zstd:chunked, is 40 bytes
in a skippable frame: offset, compressed length, length and type of the TOC, 64 bits each and
little-endian, then "GnUlInUx". Podman has 64 bytes there: before the magic is where tar-split data
lies, which follows the TOC and is of no use here.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from lamina.core.source import RangeSource
from lamina.errors import FormatError

FORMAT = "eStargz footer"
ESTARGZ_SIZE = 51
LEGACY_SIZE = 47
EXTERNAL_SIZE = 46
CHUNKED_SIZE = 40
LONG_CHUNKED_SIZE = 64
_HEADER = bytes.fromhex("1f8b080400000000 00ff")
_TRAILER = bytes.fromhex("010000ffff") + bytes(8)
_DIGITS = 16
_MARK = b"STARGZ"
_EXTERNAL_MARK = b"STARGZEXTERNALTOC"
_U16 = struct.Struct("<H")
_CHUNKED = struct.Struct("<4Q8s")
assert _CHUNKED.size == CHUNKED_SIZE
_CHUNKED_FIELDS = struct.Struct("<4Q")
"""What both lengths begin with."""
_CHUNKED_MAGIC = b"GnUlInUx"
_CHUNKED_TYPE = 1
_FRAME = struct.Struct("<4sI")
"""Of a skippable frame (RFC 8878): magic, and length of what follows."""
assert _FRAME.size == 8
_SKIPPABLE = bytes.fromhex("502a4d18")
TAIL_SIZE = LONG_CHUNKED_SIZE + _FRAME.size
"""Bytes at the end of a blob that have its footer, whichever that is."""


class Kind(enum.Enum):
    """Which footer a blob has."""

    ESTARGZ = "estargz"
    LEGACY = "stargz"
    EXTERNAL = "external TOC"
    CHUNKED = "zstd:chunked"


class TocLocation(NamedTuple):
    """Where a TOC lies, in bytes of the blob.

    Attributes:
        kind: of footer.
        offset: where the compressed TOC starts; where it would for `Kind.EXTERNAL`.
        length: of the compressed TOC; 0 for `Kind.EXTERNAL`.
        raw_length: of the TOC, where the footer tells; else None.
        data_end: where the last stream of files ends.
    """

    kind: Kind
    offset: int
    length: int
    raw_length: int | None
    data_end: int


def find_toc(source: RangeSource) -> TocLocation:
    """Read the end of a blob, once, and return where its TOC lies.

    Raises:
        FormatError: no footer is there, or it leads out of the blob.
        OutOfRange, Unavailable: as `read_at`.
    """
    length = min(source.size, TAIL_SIZE)
    tail = source.read_at(source.size - length, length)
    return parse_footer(tail, source.size)


def parse_footer(tail: bytes, size: int) -> TocLocation:
    """Return what the end of a blob of `size` bytes says; `tail` is its last `TAIL_SIZE`, or all.

    Raises:
        FormatError: no footer is there, or it leads out of the blob.
    """
    for kind, length in ((Kind.ESTARGZ, ESTARGZ_SIZE), (Kind.LEGACY, LEGACY_SIZE)):
        offset = _gzip_offset(tail[-length:], kind) if len(tail) >= length else None
        if offset is not None:
            end = size - length
            if not 0 < offset < end:
                raise _error(end, f"an offset from 1 to below {end}", str(offset))
            return TocLocation(kind, offset, end - offset, None, offset)
    if tail.endswith(_CHUNKED_MAGIC):
        return _chunked(tail, size)
    if tail.endswith(_gzip(_subfield(_EXTERNAL_MARK))):
        end = size - EXTERNAL_SIZE
        return TocLocation(Kind.EXTERNAL, end, 0, None, end)
    raise _error(
        size - len(tail), "a footer of eStargz, stargz or zstd:chunked", f"{tail[-16:].hex()}"
    )


def estargz_footer(toc_offset: int) -> bytes:
    """Return the 51 bytes for a TOC whose gzip member starts at `toc_offset`."""
    return _gzip(_subfield(b"%016x" % toc_offset + _MARK))


def legacy_footer(toc_offset: int) -> bytes:
    """Return the 47 bytes for a TOC whose gzip member starts at `toc_offset`."""
    return _gzip(b"%016x" % toc_offset + _MARK)


def external_footer() -> bytes:
    """Return the 46 bytes of a blob whose TOC lies elsewhere."""
    return _gzip(_subfield(_EXTERNAL_MARK))


def chunked_footer(toc_offset: int, length: int, raw_length: int) -> bytes:
    """Return a skippable frame, 48 bytes, for a TOC that starts behind its own frame header."""
    fields = _CHUNKED.pack(toc_offset, length, raw_length, _CHUNKED_TYPE, _CHUNKED_MAGIC)
    return _FRAME.pack(_SKIPPABLE, CHUNKED_SIZE) + fields


def skippable_header(length: int) -> bytes:
    """Return the 8 bytes before the contents of a skippable frame of zstd."""
    return _FRAME.pack(_SKIPPABLE, length)


def _gzip(extra: bytes) -> bytes:
    return _HEADER + _U16.pack(len(extra)) + extra + _TRAILER


def _subfield(data: bytes) -> bytes:
    return b"SG" + _U16.pack(len(data)) + data


def _gzip_offset(footer: bytes, kind: Kind) -> int | None:
    """Return the offset that a whole footer has; None where any byte is another."""
    start = footer.find(_MARK) - _DIGITS
    digits = footer[max(start, 0) : start + _DIGITS]
    if len(digits) != _DIGITS or not set(digits) <= set(b"0123456789abcdef"):
        return None
    offset = int(digits, 16)
    made = estargz_footer(offset) if kind is Kind.ESTARGZ else legacy_footer(offset)
    return offset if made == footer else None


def _chunked(tail: bytes, size: int) -> TocLocation:
    for length in (CHUNKED_SIZE, LONG_CHUNKED_SIZE):
        whole = tail[-length - _FRAME.size :]
        if whole.startswith(_FRAME.pack(_SKIPPABLE, length)) and len(whole) == length + _FRAME.size:
            return _chunked_fields(whole, size - length)
    expected = f"a skippable frame of {CHUNKED_SIZE} or {LONG_CHUNKED_SIZE} bytes"
    raise _error(size - len(tail), expected, tail[:-CHUNKED_SIZE].hex())


def _chunked_fields(whole: bytes, start: int) -> TocLocation:
    """Return what a frame says whose contents start at byte `start` of the blob."""
    offset, packed, raw, kind = _CHUNKED_FIELDS.unpack_from(whole, _FRAME.size)
    if kind != _CHUNKED_TYPE:
        raise _error(start + 24, f"type {_CHUNKED_TYPE} of TOC", str(kind))
    end = start - _FRAME.size
    if not (_FRAME.size < offset < end and 0 < packed <= end - offset):
        raise _error(start, f"a TOC that lies below {end}", f"{offset}+{packed}")
    return TocLocation(Kind.CHUNKED, offset, packed, raw, offset - _FRAME.size)


def _error(offset: int, expected: str, got: str) -> FormatError:
    return FormatError(FORMAT, max(offset, 0), expected=expected, got=got)
