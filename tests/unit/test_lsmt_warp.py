"""Layers of TurboOCI: read with the tar that they lead to, written, and refused."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.errors import FormatError, InvalidArgument, OutOfRange
from lamina.formats.lsmt.layout import SECTOR, About
from lamina.formats.lsmt.mappings import HOLE, ZEROS, Extent
from lamina.formats.lsmt.reader import Layer
from lamina.formats.lsmt.stack import Stack
from lamina.formats.lsmt.warp import OWN, REMOTE, Joined, Part, open_warp, write_warp
from lamina.formats.lsmt.writer import Written
from lamina.formats.zfile.writer import ZFileWriter
from tests.erofs import Bytes
from tests.lsmt import PADDING, ZERO, Row, listed, make_layer, record, rows
from tests.rafs import noise

META = noise(4 * SECTOR)
TAR = noise(5 * SECTOR + 100, b"tar")
TAG = 1 << 56
INDEX: list[Row] = [(0, 2, 8), (2, 2, TAG | 1), (5, 1, 10), (6, 2, TAG | 4), (9, 1, 12 | ZERO)]
LAYER = make_layer(META, rows(*INDEX))
SHOWN = (
    META[:1024]
    + TAR[512:1536]
    + bytes(512)
    + META[1024:1536]
    + TAR[2048:]
    + bytes(412)
    + bytes(512)
)


def opened(layer: bytes, tar: bytes = TAR) -> Layer:
    return open_warp(Bytes(layer), Bytes(tar))


def joined(layer: Layer) -> Joined:
    assert isinstance(layer.source, Joined)
    return layer.source


def test_reads() -> None:
    layer = opened(LAYER)
    source = joined(layer)
    first = -(-len(LAYER) // SECTOR)
    assert (source.boundary, source.size) == (first * SECTOR, (first + 6) * SECTOR)
    assert listed(layer.mappings) == [
        (0, 2, 8),
        (2, 2, first + 1),
        (5, 1, 10),
        (6, 2, first + 4),
        (9, 1, ZERO),
    ]
    stack = Stack([layer])
    assert stack.read_at(0, len(SHOWN)) == SHOWN
    assert stack.lookup(9 * SECTOR, SECTOR) == [Extent(9 * SECTOR, SECTOR, ZEROS, 0)]


def test_parts_of_what_is_joined() -> None:
    meta, target = Bytes(noise(700)), Bytes(noise(900))
    source = Joined(meta, target)
    assert (source.boundary, source.size) == (1024, 2048)
    assert list(source.parts(0, 2048)) == [
        Part(meta, 0, 700),
        Part(None, 700, 324),
        Part(target, 0, 900),
        Part(None, 900, 124),
    ]
    whole = meta.data + bytes(324) + target.data + bytes(124)
    for start in (0, 1, 699, 700, 701, 1023, 1024, 1025, 1923, 1924, 1925, 2047, 2048):
        for stop in (0, 1, 699, 700, 701, 1023, 1024, 1025, 1923, 1924, 1925, 2047, 2048):
            if start <= stop:
                assert source.read_at(start, stop - start) == whole[start:stop]
    for start, length in ((2000, 49), (-1, 1), (0, -1), (2049, 0)):
        with pytest.raises(OutOfRange):
            source.read_at(start, length)


@pytest.mark.parametrize("above", [0, 1, 7, 254])
def test_numbers_of_files_count_from_the_least(above: int) -> None:
    index = [(start, length, place + above * TAG) for start, length, place in INDEX]
    assert Stack([opened(make_layer(META, rows(*index)))]).read_at(0, len(SHOWN)) == SHOWN


def test_in_a_zfile_between_other_layers() -> None:
    out = io.BytesIO()
    zfile = ZFileWriter(out)
    zfile.write(LAYER)
    zfile.close()
    lower = opened(make_layer(META, rows((4, 1, 8), (8, 2, TAG | 0), (20, 1, TAG | 5))))
    stack = Stack([lower, opened(out.getvalue())])
    below = META[:512], TAR[:512], TAR[2560:] + bytes(412)
    expected = SHOWN[:2048] + below[0] + SHOWN[2560:4096] + below[1] + bytes(512)
    assert stack.read_at(0, len(expected)) == expected
    assert stack.read_at(20 * SECTOR, SECTOR) == below[2]


def test_cut_off() -> None:
    for length in range(len(LAYER)):
        with pytest.raises(FormatError):
            opened(LAYER[:length])
    for length in range(5 * SECTOR + 1):
        with pytest.raises(FormatError, match="sectors 0 to"):
            opened(LAYER, TAR[:length])
    opened(LAYER, TAR[: 5 * SECTOR + 1])


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ([(0, 1, 7)], "sectors 8 to 12 of the layer .* got sectors 7 to 8"),
        ([(0, 3, 10)], "sectors 8 to 12 of the layer .* got sectors 10 to 13"),
        ([(0, 1, 8), (1, 2, TAG | 5)], "sectors 0 to 6 of the tar .* got sectors 5 to 7"),
        ([(0, 1, 8), (1, 1, TAG | (1 << 55) - 1)], "of the tar for sector 1"),
        ([(0, 1, 8), (1, 1, 2 * TAG)], "file 0 or 1 for sector 1, got 2"),
        ([(0, 1, 8 | 5 * TAG), (1, 1, 7 * TAG)], "file 5 or 6 for sector 1, got 7"),
        ([(0, 1, 8), (1, 1, ZERO | 2 * TAG)], "file 0 or 1"),
        ([(0, 1, 8), (1, 0, TAG)], "a length"),
        ([(0, 2, 8), (1, 1, TAG)], "from sector 2 on"),
        ([(0, 1, TAG | 2)], "of the layer"),
    ],
)
def test_indexes_refused(index: list[Row], expected: str) -> None:
    with pytest.raises(FormatError, match=expected):
        opened(make_layer(META, rows(*index)))


def test_the_place_of_zeros_says_nothing() -> None:
    layer = opened(make_layer(META, rows((0, 1, 8), (3, 9, TAG | ZERO | (1 << 55) - 1))))
    assert listed(layer.mappings) == [(0, 1, 8), (3, 9, ZERO)]


def test_is_written_as_made_by_hand() -> None:
    """Own blocks are packed; remote mappings stay as they are; the index is not padded."""
    extents = [
        Extent(0, 1024, OWN, 512),
        Extent(1024, 1024, REMOTE, 512),
        Extent(2048, 512, REMOTE, 1536),
        Extent(2560, 512, HOLE, 0),
        Extent(3072, 512, ZEROS, 0),
        Extent(4096, 512, OWN, 0),
    ]
    out = io.BytesIO()
    told = write_warp(out, extents, Bytes(META), About(1 << 20))
    index = rows((0, 2, 8), (2, 3, TAG | 1), (6, 1, 10 | ZERO), (8, 1, 10))
    data = META[512:1536] + META[:512]
    expected = record(7) + data + index + record(6, (4096 + len(data), 4))
    assert out.getvalue() == expected
    assert told == Written(len(expected), len(data), 4)
    assert PADDING not in expected


def test_large_remote_extents_become_mappings_as_long_as_can_be() -> None:
    size = 26 << 20
    out = io.BytesIO()
    extents = [Extent(0, 512, OWN, 0), Extent(4096, size, REMOTE, 0)]
    assert write_warp(out, extents, Bytes(META), About(1 << 30)).mappings == 5
    lengths = open_warp(Bytes(out.getvalue()), Bytes(bytes(size))).mappings.lengths
    assert list(lengths) == [1, 16383, 16383, 16383, size // SECTOR - 3 * 16383]


@pytest.mark.parametrize(
    "extents",
    [
        [Extent(0, 512, 2, 0)],
        [Extent(0, 512, OWN, 1)],
        [Extent(0, 100, REMOTE, 0)],
        [Extent(0, 1024, OWN, 0), Extent(512, 512, REMOTE, 0)],
        [Extent(0, 512, REMOTE, 0)],
    ],
)
def test_what_is_not_written(extents: list[Extent]) -> None:
    with pytest.raises(InvalidArgument):
        write_warp(io.BytesIO(), extents, Bytes(META), About(1 << 20))


PIECES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 5), st.sampled_from([OWN, REMOTE, ZEROS, HOLE])),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(PIECES, st.integers(1, SECTOR))
def test_what_is_written_is_read(pieces: list[tuple[int, int, int]], last: int) -> None:
    own, tar = noise(20 * SECTOR, b"own"), noise(19 * SECTOR + last, b"tar")
    padded = tar.ljust(20 * SECTOR, b"\0")
    device = bytearray()
    extents = [Extent(0, SECTOR, OWN, 0)]
    device += own[:SECTOR]
    for number, (gap, sectors, file) in enumerate(pieces):
        device += bytes(gap * SECTOR)
        place, length = (number * 7 % 15) * SECTOR, sectors * SECTOR
        extents.append(Extent(len(device), length, file, place if file >= 0 else 0))
        data = {OWN: own, REMOTE: padded}.get(file, bytes(20 * SECTOR))
        device += data[place : place + length]
    out = io.BytesIO()
    write_warp(out, extents, Bytes(own), About(1 << 20))
    layer = opened(out.getvalue(), tar)
    assert Stack([layer]).read_at(0, len(device)) == device
    source = joined(layer)
    again = io.BytesIO()
    write_warp(again, _told_apart(layer, source), source.meta, layer.about)
    assert again.getvalue() == out.getvalue()


def _told_apart(layer: Layer, source: Joined) -> list[Extent]:
    """Return extents as they were written, of those of what is joined."""
    return [
        extent._replace(layer=REMOTE, place=extent.place - source.boundary)
        if extent.layer >= 0 and extent.place >= source.boundary
        else extent
        for extent in layer.mappings.extents()
    ]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=4))
def test_changes(changes: list[tuple[int, int]]) -> None:
    """Of the index and the trailer: what is read then lies inside of the files."""
    raw = bytearray(LAYER)
    for at, value in changes:
        raw[4096 + len(META) + at % (len(INDEX) * 16 + 390)] = value
    try:
        stack = Stack([opened(bytes(raw))])
    except FormatError:
        return
    for extent in stack.extents():
        stack.read_at(extent.offset, extent.length)
