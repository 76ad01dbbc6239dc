"""Sealed layers, byte for byte as overlaybd-commit lays them out."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple, Protocol

from lamina.core.source import RangeSource
from lamina.errors import InvalidArgument, ResourceExhausted
from lamina.formats.lsmt.layout import (
    FIRST_SECTOR,
    MAPPING_SIZE,
    MAX_DEVICE,
    MAX_LENGTH,
    MAX_MAPPINGS,
    MAX_MESSAGE,
    OFFSET_BITS,
    PADDING,
    SECTOR,
    SLOT,
    ZEROED,
    About,
    Flags,
    pack_record,
)
from lamina.formats.lsmt.mappings import HOLE, ZEROS, Extent, Mappings, MappingsBuilder
from lamina.formats.lsmt.merging import pieces

BLOCK = 4096
"""Bytes that are looked at for zeros at a time."""

_PIECE = 32 << 10
"""Bytes of data that a mapping grows by."""
_READ = 1 << 20
_INDEX_UNIT = 256
"""Mappings that an index is a multiple of."""
_WRITTEN_AT_ONCE = 1 << 16
DATA_PIECE = _PIECE // SECTOR
"""The same in sectors."""


class Output(Protocol):
    """What only ever appends: a file, or a `ZFileWriter`."""

    def write(self, data: bytes, /) -> object:
        """Append bytes."""
        ...


class Written(NamedTuple):
    """What became of a layer.

    Attributes:
        size: bytes of the file.
        data: bytes of it that the device shows.
        mappings: entries of the index, without padding.
    """

    size: int
    data: int
    mappings: int


def write_layer(
    out: Output, extents: Iterable[Extent], sources: Sequence[RangeSource], about: About
) -> Written:
    """Write a sealed layer; equal extents and data give equal bytes.

    Holes stay holes, so that lower layers show there; ZEROS hide them. An upper layer is committed
    with the extents of its mappings, a device with those of its stack.

    Args:
        out: where to; neither closed nor flushed.
        extents: what the layer has, ascending and apart, in whole sectors.
        sources: what their layer numbers and places mean.
        about: what it says of itself.

    Raises:
        InvalidArgument: the extents are not so, or the layer cannot say that of itself.
        ResourceExhausted: it would have more mappings than overlaybd reads.
    """
    check_about(about)
    out.write(pack_record(about, Flags.HEADER | Flags.DATA | Flags.SEALED))
    # A mapping is never as long as it could be: overlaybd joins what stays below that.
    index = MappingsBuilder(MAX_LENGTH - 1)
    sector, position = FIRST_SECTOR, 0
    for extent in extents:
        if extent.offset < position:
            hint = f"it must not begin before byte {position}, where the last one ends"
            raise InvalidArgument("write LSMT extent", tuple(extent), hint=hint)
        position = extent.offset + extent.length
        if extent.layer == HOLE:
            continue
        zeros = extent.layer == ZEROS
        for start, length, _place in pieces(extent, MAX_LENGTH if zeros else DATA_PIECE):
            index.add(start, length, sector | ZEROED if zeros else sector)
            sector += 0 if zeros else length
        if not zeros:
            copy(out, extent, sources)
        check_count(len(index.mappings))
    size = write_index(out, index.mappings, _INDEX_UNIT)
    count = size // MAPPING_SIZE
    out.write(pack_record(about, Flags.DATA | Flags.SEALED, sector * SECTOR, count))
    data = (sector - FIRST_SECTOR) * SECTOR
    return Written(SLOT + data + size + SLOT, data, len(index.mappings))


def image_extents(image: RangeSource, *, hide: bool = False) -> Iterator[Extent]:
    """Yield what a raw image of a device has, as places in layer 0, which is the image.

    Blocks of BLOCK bytes that are zeros are left out, or are ZEROS.

    Args:
        image: of whole sectors.
        hide: whether zeros have to hide what lower layers have there.

    Raises:
        InvalidArgument: it is not of whole sectors.
        Unavailable: its bytes cannot be had just now.
    """
    if image.size % SECTOR:
        hint = f"its size must be a multiple of {SECTOR}"
        raise InvalidArgument("read image of", f"{image.size} bytes", hint=hint)
    first, zeros = 0, False
    for offset, blank in chain(_blocks(image), [(image.size, None)]):
        if blank is zeros:
            continue
        if offset > first and (hide or not zeros):
            layer, place = (ZEROS, 0) if zeros else (0, first)
            yield Extent(first, offset - first, layer, place)
        first, zeros = offset, bool(blank)


def _blocks(image: RangeSource) -> Iterator[tuple[int, bool]]:
    """Yield where blocks begin and whether they are zeros; some may be many, if all are."""
    nothing = bytes(_READ)
    for offset in range(0, image.size, _READ):
        data = image.read_at(offset, min(_READ, image.size - offset))
        if data == nothing[: len(data)]:
            yield offset, True
            continue
        for at in range(0, len(data), BLOCK):
            block = data[at : at + BLOCK]
            yield offset + at, block == nothing[: len(block)]


def copy(out: Output, extent: Extent, sources: Sequence[RangeSource]) -> None:
    """Write the bytes of an extent that is data."""
    for done in range(0, extent.length, _READ):
        length = min(_READ, extent.length - done)
        out.write(sources[extent.layer].read_at(extent.place + done, length))


def check_about(about: About) -> None:
    """See that a layer can say that of itself.

    Raises:
        InvalidArgument: it cannot.
    """
    if not 0 <= about.virtual_size <= MAX_DEVICE or about.virtual_size % SECTOR:
        hint = f"it must be whole sectors, {MAX_DEVICE} bytes at most"
        raise InvalidArgument("write LSMT layer of size", about.virtual_size, hint=hint)
    if len(about.message) > MAX_MESSAGE:
        hint = f"it may have {MAX_MESSAGE} bytes"
        raise InvalidArgument("write LSMT layer with message", about.message, hint=hint)


def check_count(count: int) -> None:
    """See that an index of so many mappings is read again.

    Raises:
        ResourceExhausted: it is not.
    """
    if count + -count % _INDEX_UNIT > MAX_MAPPINGS:
        hint = "write larger extents"
        raise ResourceExhausted(f"write more than {MAX_MAPPINGS} LSMT mappings", hint=hint)


def write_index(out: Output, mappings: Mappings, unit: int) -> int:
    """Write an index, padded to a multiple of `unit` mappings, and return its bytes."""
    size = 0
    for first in range(0, len(mappings), _WRITTEN_AT_ONCE):
        rows = slice(first, first + _WRITTEN_AT_ONCE)
        starts, lengths = mappings.starts[rows], mappings.lengths[rows]
        words = array("Q", bytes(MAPPING_SIZE * len(starts)))
        words[0::2] = array(
            "Q",
            (length << OFFSET_BITS | start for start, length in zip(starts, lengths, strict=True)),
        )
        words[1::2] = mappings.places[rows]
        if sys.byteorder == "big":
            words.byteswap()
        out.write(words.tobytes())
        size += MAPPING_SIZE * len(starts)
    padding = -len(mappings) % unit
    entry = PADDING.to_bytes(MAPPING_SIZE, "little")
    out.write(entry * padding)
    return size + MAPPING_SIZE * padding
