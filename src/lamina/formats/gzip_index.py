"""`gzip.meta` of TurboOCI: places in a gzip blob from which it can be decompressed.

All numbers are little-endian. Where things lie:

    byte 0          the header, 333 bytes
    byte 333        windows: 32 KiB of output before each place, compressed by zlib one by one
    index_start     the entries, 29 bytes for each place, compressed by zlib together

Whether zlib is used is for the header to say. There is a place for about each MiB of output; what
lies between two is a *span*. The blob has one gzip member. Nothing here verifies what comes out:
whoever has the digest of the tar may.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import BinaryIO, NamedTuple

from lamina.core.source import RangeSource
from lamina.errors import FormatError, InvalidArgument, NotImplementedHere
from lamina.formats.crc32c import crc32c
from lamina.formats.deflate import WINDOW, Point

FORMAT = "gzip index"
MAGIC = b"ddgzidx\0"
HEADER = struct.Struct("<8sBBBbBiiiqqqq256sqqI")
assert HEADER.size == 333
ENTRY = struct.Struct("<qqqBI")
assert ENTRY.size == 29
MAJOR = 1
SPACING = 1 << 20
"""Bytes of output between places, as a rule."""
MAX_ENTRIES = 1 << 20
"""Each costs 29 bytes of memory."""
MAX_SPAN = 1 << 26
"""Bytes of output between two places: all of it is decompressed at once. Blocks of deflate, between
which places are, have less than 5 MiB with any usual compressor."""

_LEVEL = 6
_MAX_SIZE = (1 << 63) - 1
_SLACK = 4096
"""Bytes by which zlib may make entries or a window longer."""


class Header(NamedTuple):
    """What an index begins with.

    Attributes:
        magic: MAGIC.
        major: MAJOR.
        minor: anything.
        compressed: 1 if windows and entries are compressed by zlib, or 0.
        level: of that; says nothing.
        flag: says nothing.
        spacing: bytes of output that were wanted between places; says nothing.
        window: WINDOW.
        entry_size: bytes of an entry, 29.
        entries: how many there are.
        gzip_size: bytes of the blob.
        file_size: bytes of the index.
        size: bytes of output.
        reserved: anything.
        index_start: byte of the entries.
        index_size: bytes of them as they are stored.
        crc: CRC-32C of what is before, begun with 0.
    """

    magic: bytes
    major: int
    minor: int
    compressed: int
    level: int
    flag: int
    spacing: int
    window: int
    entry_size: int
    entries: int
    gzip_size: int
    file_size: int
    size: int
    reserved: bytes
    index_start: int
    index_size: int
    crc: int


class Span(NamedTuple):
    """Output from one place to the next.

    Attributes:
        out_offset: byte of the output.
        out_size: bytes.
        in_offset: byte of the blob where it begins; the one within which it does if it has `bits`.
        in_size: bytes of the blob, up to its end for the last span.
        bits: how many high bits of the first byte belong to it, unless all do (0).
    """

    out_offset: int
    out_size: int
    in_offset: int
    in_size: int
    bits: int


class GzipIndex:
    """An index; its windows are read when they are asked for.

    Attributes:
        size: bytes of output.
        gzip_size: bytes of the blob.
    """

    def __init__(self, source: RangeSource, header: Header, entries: bytes) -> None:
        """Use `read_gzip_index`."""
        self.size = header.size
        self.gzip_size = header.gzip_size
        self._source = source
        self._compressed = bool(header.compressed)
        self._outs, self._ins, self._windows = array("q"), array("q"), array("q")
        self._bits, self._sizes = array("B"), array("I")
        columns = (self._outs, self._ins, self._windows, self._bits, self._sizes)
        for entry in ENTRY.iter_unpack(entries):
            for column, value in zip(columns, entry, strict=True):
                column.append(value)

    def __len__(self) -> int:
        return len(self._outs)

    def find(self, offset: int) -> int:
        """Return the number of the span that has a byte of output."""
        return bisect_right(self._outs, offset) - 1

    def span(self, number: int) -> Span:
        """Return where a span is; the first is 0."""
        after = number + 1
        last = after == len(self)
        out_end = self.size if last else self._outs[after]
        in_end = self.gzip_size if last else self._ins[after]
        out, bits = self._outs[number], self._bits[number]
        start = self._ins[number] - (1 if bits else 0)
        return Span(out, out_end - out, start, in_end - start, bits)

    def window(self, number: int) -> bytes:
        """Return WINDOW bytes before a span, zeros where there are not as many.

        Raises:
            FormatError: they are damaged.
            Unavailable: the bytes cannot be had just now.
        """
        at, size = self._windows[number], self._sizes[number]
        raw = self._source.read_at(at, size)
        return _unpacked(raw, WINDOW, at) if self._compressed else raw


def read_gzip_index(source: RangeSource) -> GzipIndex:
    """Read header and entries. The source must stay as long as what is returned is used.

    Raises:
        FormatError: it is none, is damaged or cut off, or has what is not supported.
        Unavailable: the bytes cannot be had just now.
    """
    if source.size < HEADER.size:
        raise damaged(0, f"a header of {HEADER.size} bytes", f"{source.size} bytes")
    raw = source.read_at(0, HEADER.size)
    header = Header._make(HEADER.unpack(raw))
    if header.magic != MAGIC:
        raise damaged(0, "the magic of a gzip index", header.magic.hex())
    if (crc := crc32c(0, raw[:-4])) != header.crc:
        raise damaged(329, f"the CRC-32C {crc:#010x}", f"{header.crc:#010x}")
    _check_header(header, source.size)
    stored = source.read_at(header.index_start, header.index_size)
    size = header.entries * ENTRY.size
    entries = _unpacked(stored, size, header.index_start) if header.compressed else stored
    if len(entries) != size:
        raise damaged(header.index_start, f"{size} bytes of entries", len(entries))
    _check_entries(header, entries)
    return GzipIndex(source, header, entries)


def write_gzip_index(
    out: BinaryIO, points: Sequence[Point], *, size: int, gzip_size: int, spacing: int = SPACING
) -> int:
    """Write an index, and return its bytes; equal points give equal bytes with one zlib.

    Args:
        out: an empty file that can seek; neither closed nor flushed.
        points: by ascending place, the first at byte 0 of the output.
        size: bytes of output.
        gzip_size: bytes of the blob.
        spacing: bytes of output that are between points, for the header.

    Raises:
        InvalidArgument: points are not so.
        NotImplementedHere: the blob has more than one member, or blocks that are too large.
    """
    _check_points(points, size)
    out.write(bytes(HEADER.size))
    at = HEADER.size
    entries = bytearray()
    for point in points:
        window = zlib.compress(point.window.rjust(WINDOW, b"\0"), _LEVEL)
        out.write(window)
        place = (point.out_offset, point.in_offset, at)
        entries += ENTRY.pack(*place, point.bits, len(window))
        at += len(window)
    stored = zlib.compress(entries, _LEVEL)
    out.write(stored)
    header = Header(
        magic=MAGIC,
        major=MAJOR,
        minor=0,
        compressed=1,
        level=_LEVEL,
        flag=0,
        spacing=spacing,
        window=WINDOW,
        entry_size=ENTRY.size,
        entries=len(points),
        gzip_size=gzip_size,
        file_size=at + len(stored),
        size=size,
        reserved=b"",
        index_start=at,
        index_size=len(stored),
        crc=0,
    )
    head = HEADER.pack(*header)[:-4]
    out.seek(0)
    out.write(head + crc32c(0, head).to_bytes(4, "little"))
    out.seek(header.file_size)
    return header.file_size


def damaged(offset: int, expected: str, got: object) -> FormatError:
    """Return the error for an index that cannot be read at a byte of it."""
    return FormatError(FORMAT, offset, expected=expected, got=str(got)[:200])


def _check_header(header: Header, size: int) -> None:
    if header.major != MAJOR:
        raise damaged(8, f"version {MAJOR}", header.major)
    if header.compressed > 1:
        raise damaged(10, "no compression (0) or zlib (1)", header.compressed)
    if (header.window, header.entry_size) != (WINDOW, ENTRY.size):
        expected = f"windows of {WINDOW} bytes and entries of {ENTRY.size}"
        raise damaged(17, expected, f"{header.window} and {header.entry_size}")
    if not 0 < header.entries <= MAX_ENTRIES:
        raise damaged(25, f"1 to {MAX_ENTRIES} entries", header.entries)
    if header.gzip_size < 0 or header.size < 0:
        raise damaged(33, "sizes", f"{header.gzip_size} and {header.size}")
    if header.file_size != size:
        raise damaged(41, f"an index of {size} bytes", header.file_size)
    start, stored = header.index_start, header.index_size
    if not HEADER.size <= start <= size or stored != size - start:
        raise damaged(313, f"entries up to byte {size}", f"{stored} bytes at {start}")
    if stored > header.entries * ENTRY.size * 2 + _SLACK:
        raise damaged(321, f"{header.entries} entries", f"{stored} bytes of them")


def _check_entries(header: Header, entries: bytes) -> None:
    """See that places ascend and lie inside of the blob, and windows inside of the index."""
    at = header.index_start
    most = WINDOW + _SLACK if header.compressed else WINDOW
    least = 1 if header.compressed else WINDOW
    outs, ins = 0, 0
    for number, (out, place, window, bits, size) in enumerate(ENTRY.iter_unpack(entries)):
        if not (outs <= out <= header.size and (number or not out)):
            raise damaged(at, f"entry {number} at a byte of output from {outs} on", out)
        if out - outs > MAX_SPAN:
            raise damaged(at, f"at most {MAX_SPAN} bytes before entry {number}", out - outs)
        if bits > 7 or not max(ins, 1 if bits else 0) <= place <= header.gzip_size:
            got = f"byte {place} and {bits} bits of the one before"
            raise damaged(at, f"entry {number} at a byte of the blob from {ins} on", got)
        inside = HEADER.size <= window <= header.index_start - size
        if not (least <= size <= most and inside):
            raise damaged(at, f"a window of entry {number}", f"{size} bytes at {window}")
        outs, ins = out, place
    if header.size - outs > MAX_SPAN:
        raise damaged(at, f"at most {MAX_SPAN} bytes behind the last entry", header.size - outs)


def _unpacked(raw: bytes, size: int, at: int) -> bytes:
    """Return what zlib makes of bytes: exactly `size` bytes."""
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(raw, size + 1)
    except zlib.error as error:
        raise damaged(at, "data of zlib", error) from error
    if len(data) != size or not inflater.eof:
        raise damaged(at, f"{size} bytes in data of zlib", f"{len(data)} bytes")
    return data


def _check_points(points: Sequence[Point], size: int) -> None:
    what = "index a gzip blob"
    if not points or points[0].out_offset or points[-1].out_offset > size:
        raise InvalidArgument(what, hint="the first place must be at byte 0, and none behind it")
    if len(points) > MAX_ENTRIES:
        raise NotImplementedHere(f"{what} by more than {MAX_ENTRIES} places")
    ends = [point.out_offset for point in points] + [size]
    for one, other in pairwise(ends):
        if other < one:
            raise InvalidArgument(what, hint=f"byte {other} must not follow byte {one}")
        if other - one > MAX_SPAN:
            raise NotImplementedHere(f"{what} with {other - one} bytes between places")
    # What goes before it is the trailer of a member, which no reader passes over.
    if any(not point.window for point in points[1:]):
        raise NotImplementedHere(f"{what} of several members")
