"""Layers of TurboOCI: a filesystem's own blocks, and where in the original tar its files lie.

Such a layer ("warp" in overlaybd's code) is a sealed one whose mappings have a number of a file in
place of a layer's: OWN counts in the layer itself, REMOTE in the uncompressed tar. Tars begin what
files contain with a sector of its own, so that mappings can lead there.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lamina.core.source import RangeSource
from lamina.errors import InvalidArgument, OutOfRange
from lamina.formats.lsmt.layout import (
    FIRST_SECTOR,
    MAX_LENGTH,
    MAX_PLACE,
    SECTOR,
    SLOT,
    TAG_SHIFT,
    ZEROED,
    About,
    Flags,
    damaged,
    pack_record,
)
from lamina.formats.lsmt.mappings import HOLE, ZEROS, Extent, Mappings, MappingsBuilder
from lamina.formats.lsmt.merging import pieces
from lamina.formats.lsmt.reader import Layer, read_sealed, uncompressed
from lamina.formats.lsmt.writer import (
    DATA_PIECE,
    Output,
    Written,
    check_about,
    check_count,
    copy,
    write_index,
)

OWN, REMOTE = 0, 1
"""Numbers of files: the layer, and the tar."""

_ALL_BITS = (1 << 64) - 1


class Part(NamedTuple):
    """Some bytes of what is joined.

    Attributes:
        source: which of the two has them; None for zeros behind its end.
        offset: byte of that source.
        length: bytes.
    """

    source: RangeSource | None
    offset: int
    length: int


class Joined:
    """A layer and the tar that it leads to, as one source: each has whole sectors of it.

    Attributes:
        meta: the layer, uncompressed.
        target: the tar.
        boundary: byte at which the tar begins.
        size: bytes.
    """

    def __init__(self, meta: RangeSource, target: RangeSource) -> None:
        """Take both, which must stay."""
        self.meta = meta
        self.target = target
        self.boundary = _sectors(meta.size) * SECTOR
        self.size = self.boundary + _sectors(target.size) * SECTOR

    def parts(self, offset: int, length: int) -> Iterator[Part]:
        """Yield what a range of bytes is made of.

        Raises:
            OutOfRange: the range does not lie inside.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OutOfRange(f"read {length} bytes at {offset} of a layer of {self.size}")
        stop = offset + length
        for source, first, end in (
            (self.meta, 0, self.boundary),
            (self.target, self.boundary, self.size),
        ):
            start, upto = max(offset, first), min(stop, end)
            data_end = min(upto, first + source.size)
            if start < data_end:
                yield Part(source, start - first, data_end - start)
            start = max(start, data_end)
            if start < upto:
                yield Part(None, start - first, upto - start)

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from byte `offset` on.

        Raises:
            FormatError: the layer is damaged.
            OutOfRange: the range does not lie inside.
            Unavailable: the bytes cannot be had just now.
        """
        return b"".join(
            source.read_at(at, size) if source else bytes(size)
            for source, at, size in self.parts(offset, length)
        )


def open_warp(meta: RangeSource, target: RangeSource) -> Layer:
    """Read a layer of TurboOCI; the source of what is returned is a `Joined`.

    Args:
        meta: `<filesystem>.fs.meta`, be it in a ZFile or not.
        target: the tar of the original layer, uncompressed.

    Raises:
        FormatError: it is none, is damaged or cut off, or leads to what the tar does not have.
        Unavailable: the bytes cannot be had just now.
    """
    source = uncompressed(meta)
    told, offset, mappings = read_sealed(source, _ALL_BITS)
    joined = Joined(source, target)
    places = array("Q", _places(mappings, offset, joined))
    return Layer(joined, told, Mappings(mappings.starts, mappings.lengths, places))


def write_warp(out: Output, extents: Iterable[Extent], meta: RangeSource, about: About) -> Written:
    """Write a layer of TurboOCI as overlaybd lays it out: not in a ZFile, its index not padded.

    Args:
        out: where to; neither closed nor flushed.
        extents: what it has, ascending and apart, in whole sectors. Their layer is OWN, REMOTE,
            ZEROS, or HOLE, which is passed over; a REMOTE place is that of the tar.
        meta: what OWN places count in.
        about: what it says of itself.

    Raises:
        InvalidArgument: the extents are not so, all are REMOTE, which nobody could tell from all
            being OWN, or the layer cannot say that of itself.
        ResourceExhausted: it would have more mappings than overlaybd reads.
    """
    check_about(about)
    out.write(pack_record(about, Flags.HEADER | Flags.DATA | Flags.SEALED))
    index = MappingsBuilder(MAX_LENGTH - 1)
    sector, position, told = FIRST_SECTOR, 0, False
    for extent in extents:
        _check_extent(extent, position)
        position = extent.offset + extent.length
        if extent.layer == HOLE:
            continue
        own = extent.layer == OWN
        for start, length, place in pieces(extent, DATA_PIECE if own else MAX_LENGTH):
            zeros = sector | ZEROED if place & ZEROED else place
            index.add(start, length, sector if own else zeros)
            sector += length if own else 0
        if own:
            copy(out, extent, [meta])
        told = told or extent.layer != REMOTE
        check_count(len(index.mappings))
    if len(index.mappings) and not told:
        raise InvalidArgument("write layer of TurboOCI", hint="it must have blocks of its own")
    size = write_index(out, index.mappings, 1)
    count = len(index.mappings)
    out.write(pack_record(about, Flags.DATA | Flags.SEALED, sector * SECTOR, count))
    data = (sector - FIRST_SECTOR) * SECTOR
    return Written(SLOT + data + size + SLOT, data, count)


def _sectors(size: int) -> int:
    return -(-size // SECTOR)


def _places(mappings: Mappings, at: int, joined: Joined) -> Iterator[int]:
    """Yield places in what is joined; see that they lead to something.

    Numbers of files count from the least one: a layer that was above others when it was committed
    may have all of them greater.
    """
    least = min(mappings.places, default=0) >> TAG_SHIFT
    ends = {OWN: at // SECTOR, REMOTE: _sectors(joined.target.size)}
    firsts = {OWN: FIRST_SECTOR, REMOTE: 0}
    moved = {OWN: 0, REMOTE: joined.boundary // SECTOR}
    columns = zip(mappings.starts, mappings.lengths, mappings.places, strict=True)
    for start, length, place in columns:
        file, first = (place >> TAG_SHIFT) - least, place & MAX_PLACE
        if not length:
            raise damaged(at, f"a length of the mapping of sector {start}", 0)
        if file not in ends:
            raise damaged(at, f"file {least} or {least + 1} for sector {start}", file + least)
        if place & ZEROED:
            # Their place says nothing.
            yield ZEROED
            continue
        if first < firsts[file] or first + length > ends[file]:
            name = "the tar" if file == REMOTE else "the layer"
            expected = f"sectors {firsts[file]} to {ends[file]} of {name} for sector {start}"
            raise damaged(at, expected, f"sectors {first} to {first + length}")
        yield first + moved[file]


def _check_extent(extent: Extent, position: int) -> None:
    if extent.offset < position or extent.layer not in {OWN, REMOTE, ZEROS, HOLE}:
        hint = f"it must be of file {OWN} or {REMOTE}, and not begin before byte {position}"
        raise InvalidArgument("write LSMT extent", tuple(extent), hint=hint)
