"""Layers as they are read: sealed ones, and those that are written to."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from itertools import compress, islice, repeat
from operator import add, and_, le, ne, rshift
from typing import NamedTuple

from lamina.core.source import RangeSource
from lamina.errors import FormatError, InvalidArgument
from lamina.formats.lsmt.layout import (
    FIRST_SECTOR,
    MAPPING_SIZE,
    MAX_LENGTH,
    MAX_LOGGED,
    MAX_MAPPINGS,
    MAX_OFFSET,
    MAX_PLACE,
    OFFSET_BITS,
    PADDING,
    SECTOR,
    SLOT,
    UNTAGGED,
    ZEROED,
    About,
    Flags,
    about,
    damaged,
    is_lsmt,
    parse_record,
)
from lamina.formats.lsmt.mappings import Mappings, MappingsBuilder
from lamina.formats.lsmt.merging import replay
from lamina.formats.zfile.envelope import unwrap
from lamina.formats.zfile.layout import is_zfile
from lamina.formats.zfile.reader import read_zfile

_PIECE = 1 << 20
"""Bytes of an index at once."""
_MAGIC_SIZE = 24


class Layer(NamedTuple):
    """A layer that can be read.

    Attributes:
        source: its file, uncompressed, which the places of mappings count in.
        about: what it says of itself.
        mappings: its index, with layer number 0.
    """

    source: RangeSource
    about: About
    mappings: Mappings


def open_layer(source: RangeSource) -> Layer:
    """Read a layer, be it in a tar, a ZFile, both or neither.

    Raises:
        FormatError: it is none, is damaged or cut off, or has what is not supported.
        Unavailable: the bytes cannot be had just now.
    """
    return read_layer(uncompressed(source))


def uncompressed(source: RangeSource) -> RangeSource:
    """Return the LSMT file in a tar, a ZFile, both or neither; whether it is one is not looked at.

    Raises:
        FormatError: a wrapping is damaged or cut off, or has what is not supported.
        Unavailable: the bytes cannot be had just now.
    """
    source = unwrap(source)
    return read_zfile(source) if is_zfile(_head(source)) else source


def is_layer(source: RangeSource) -> bool:
    """Tell from the first bytes whether `open_layer` may read it; a tar of files is none.

    Raises:
        Unavailable: the bytes cannot be had just now.
    """
    try:
        source = unwrap(source)
    except FormatError:
        return False
    head = _head(source)
    return is_zfile(head) or is_lsmt(head)


def read_layer(source: RangeSource) -> Layer:
    """Read a sealed layer that is neither in a tar nor in a ZFile.

    The source must stay as long as what is returned is used. Mappings behind the end of the device
    are allowed, as overlaybd leaves them where a device was made smaller.

    Raises:
        FormatError: it is none, is damaged or cut off, or has what is not supported.
        Unavailable: the bytes cannot be had just now.
    """
    told, offset, mappings = read_sealed(source, UNTAGGED)
    _check_places(mappings, offset, offset // SECTOR)
    return Layer(source, told, mappings)


def read_sealed(source: RangeSource, mask: int) -> tuple[About, int, Mappings]:
    """Read header, trailer and index of a sealed layer, but do not look where its mappings lead.

    Args:
        source: neither in a tar nor in a ZFile.
        mask: bits of places to keep.

    Returns:
        What it says of itself, the byte of its index, and its mappings.

    Raises:
        FormatError: it is none, is damaged or cut off, or has what is not supported.
        Unavailable: the bytes cannot be had just now.
    """
    end = source.size - SLOT
    if end < SLOT:
        raise damaged(0, "a header and a trailer", f"{source.size} bytes")
    parse_record(source.read_at(0, SLOT), 0, Flags.HEADER | Flags.DATA)
    trailer = parse_record(source.read_at(end, SLOT), end, Flags.DATA | Flags.SEALED)
    if trailer.mappings > MAX_MAPPINGS:
        raise damaged(end + 40, f"at most {MAX_MAPPINGS} mappings", trailer.mappings)
    offset, size = trailer.index_offset, trailer.mappings * MAPPING_SIZE
    if not SLOT <= offset <= end - size:
        got = f"{trailer.mappings} mappings at byte {offset}"
        raise damaged(end + 32, f"an index between bytes {SLOT} and {end}", got)
    mappings = _read_index(source, offset, trailer.mappings, mask)
    _check_order(mappings, offset)
    return about(trailer, end), offset, mappings


def read_writable(data: RangeSource, log: RangeSource) -> Layer:
    """Read a layer of two files that is written to: data at its end, and a log of mappings.

    What the log says later counts. Mappings that were never completed at its end are passed over.
    Sparse layers have no log; see `read_sparse`.

    Raises:
        FormatError: they are none, are damaged, or the log is longer than MAX_LOGGED mappings.
        Unavailable: the bytes cannot be had just now.
    """
    for source, name in ((data, "data"), (log, "index")):
        if source.size < SLOT:
            raise damaged(0, f"the header of a {name} file", f"{source.size} bytes")
    record = parse_record(data.read_at(0, SLOT), 0, Flags.HEADER | Flags.DATA)
    if record.flags & Flags.SPARSE:
        raise damaged(28, "a layer with a log", "a sparse one")
    parse_record(log.read_at(0, SLOT), 0, Flags.HEADER)
    count = (log.size - SLOT) // MAPPING_SIZE
    if count > MAX_LOGGED:
        raise damaged(SLOT, f"a log of at most {MAX_LOGGED} mappings", count)
    mappings = _read_index(log, SLOT, count, UNTAGGED)
    _check_places(mappings, SLOT, data.size // SECTOR)
    return Layer(data, about(record, 0), replay(mappings))


def read_sparse(data: RangeSource, extents: Iterable[tuple[int, int]]) -> Layer:
    """Read a sparse layer that is written to: behind the header, data lies where the device has it.

    Only its filesystem knows what was written. What was discarded is a hole as well, through which
    lower layers show again: overlaybd has it so.

    Args:
        data: its file.
        extents: byte and length of what is no hole in it, ascending and apart, as SEEK_DATA and
            SEEK_HOLE tell; the header may be among it.

    Raises:
        FormatError: it is none or is damaged, or has more than MAX_LOGGED mappings.
        InvalidArgument: the extents are not so.
        Unavailable: the bytes cannot be had just now.
    """
    if data.size < SLOT or data.size % SECTOR:
        raise damaged(0, "a header and sectors of data", f"{data.size} bytes")
    record = parse_record(data.read_at(0, SLOT), 0, Flags.HEADER | Flags.DATA)
    if not record.flags & Flags.SPARSE:
        raise damaged(28, "a sparse layer", f"the flags {record.flags:#x}")
    mappings = MappingsBuilder()
    end, position = FIRST_SECTOR, 0
    for offset, length in extents:
        if offset < position or length < 0 or offset + length > data.size:
            hint = f"it must lie between bytes {position} and {data.size}"
            raise InvalidArgument("read sparse LSMT extent", (offset, length), hint=hint)
        position = offset + length
        if not length:
            continue
        first, end = max(end, offset // SECTOR), max(end, -(-position // SECTOR))
        for sector in range(first, end, MAX_LENGTH):
            mappings.add(sector - FIRST_SECTOR, min(MAX_LENGTH, end - sector), sector)
        if len(mappings.mappings) > MAX_LOGGED:
            raise damaged(SLOT, f"at most {MAX_LOGGED} mappings", len(mappings.mappings))
    return Layer(data, about(record, 0), mappings.mappings)


def _head(source: RangeSource) -> bytes:
    return source.read_at(0, min(_MAGIC_SIZE, source.size))


def _read_index(source: RangeSource, offset: int, count: int, mask: int) -> Mappings:
    """Return the mappings of an index without padding; of places, the bits of a mask."""
    found = Mappings.empty()
    position, end = offset, offset + count * MAPPING_SIZE
    while position < end:
        piece = source.read_at(position, min(_PIECE, end - position))
        words = array("Q", piece)
        if sys.byteorder == "big":
            words.byteswap()
        first, second = words[0::2], words[1::2]
        used = bytes(map(ne, first, repeat(PADDING)))
        if 0 in used:
            first, second = array("Q", compress(first, used)), array("Q", compress(second, used))
        found.starts.extend(map(and_, first, repeat(MAX_OFFSET)))
        found.lengths.extend(map(rshift, first, repeat(OFFSET_BITS)))
        found.places.extend(map(and_, second, repeat(mask)))
        position += len(piece)
    return found


def _check_order(mappings: Mappings, at: int) -> None:
    ends = map(add, mappings.starts, mappings.lengths)
    if all(map(le, ends, islice(mappings.starts, 1, None))):
        return
    end = 0
    for start, length in zip(mappings.starts, mappings.lengths, strict=True):
        if start < end:
            raise damaged(at, f"a mapping from sector {end} on", f"one of sector {start}")
        end = start + length


def _check_places(mappings: Mappings, at: int, limit: int) -> None:
    """See that mappings lead to data, which ends before a sector of the file."""
    columns = zip(mappings.starts, mappings.lengths, mappings.places, strict=True)
    for start, length, place in columns:
        first = place & MAX_PLACE
        end = first if place & ZEROED else first + length
        if not length:
            raise damaged(at, f"a length of the mapping of sector {start}", 0)
        if first < FIRST_SECTOR or end > limit:
            expected = f"data of sectors {FIRST_SECTOR} to {limit} for sector {start}"
            raise damaged(at, expected, f"sectors {first} to {end}")
