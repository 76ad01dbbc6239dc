"""LSMT layers made by hand are read, laid over each other, and refused where they are damaged."""

from __future__ import annotations

import random
import struct
import tarfile
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lamina.errors import FormatError, InvalidArgument, OutOfRange, ResourceExhausted
from lamina.formats.lsmt import merging, reader
from lamina.formats.lsmt.mappings import HOLE, ZEROS, Extent
from lamina.formats.lsmt.merging import merge, replay, replay_writes
from lamina.formats.lsmt.reader import (
    Layer,
    is_layer,
    open_layer,
    read_layer,
    read_sparse,
    read_writable,
)
from lamina.formats.lsmt.stack import Stack
from tests.erofs import Bytes
from tests.lsmt import PADDING, UUID, ZERO, Row, listed, make_layer, mapped, record, rows
from tests.rafs import noise
from tests.zfile import lz4_blocks, make_zfile

DATA = noise(6 * 512)
INDEX = rows((2, 3, 8), (5, 1, 9 | ZERO), (100, 2, 11 | 7 << 56)) + PADDING * 2
LAYER = make_layer(DATA, INDEX)


def layer(data: bytes, *found: Row, size: int = 1 << 20) -> Layer:
    return read_layer(Bytes(make_layer(data, rows(*found), size)))


def test_reads() -> None:
    found = read_layer(Bytes(LAYER))
    assert str(found.about.uuid).upper().encode() == UUID
    assert found.about.virtual_size == 1 << 20
    assert listed(found.mappings) == [(2, 3, 8), (5, 1, 9 | ZERO), (100, 2, 11)]
    stack = Stack([found])
    expected = bytes(1024) + DATA[:1536] + bytes(95 * 512) + DATA[1536:2560]
    assert stack.read_at(0, len(expected) + 7) == expected + bytes(7)
    assert stack.read_at(1030, 9) == DATA[6:15]
    assert stack.read_at(stack.size, 0) == b""
    with pytest.raises(OutOfRange):
        stack.read_at(stack.size, 1)


def test_reads_what_was_sealed_in_place() -> None:
    """The header is the old one, and what pads the index is anything."""
    header = record(0x13)
    trailer = record(0x16, (4096 + len(DATA), 1))
    raw = header + DATA + rows((0, 2, 9)) + noise(496) + trailer
    assert Stack([read_layer(Bytes(raw))]).read_at(0, 1024) == DATA[512:1536]


def test_reads_a_log_that_was_sealed_in_place() -> None:
    """What was written over is still there, and the index has as many entries as it has."""
    index = rows((0, 1, 10), (1, 1, 9), (4, 2, 13 | ZERO))
    trailer = record(6, (4096 + 5 * 512, 3))
    raw = record(3) + DATA[: 5 * 512] + index + noise(512 - len(index)) + trailer
    found = read_layer(Bytes(raw))
    assert listed(found.mappings) == [(0, 1, 10), (1, 1, 9), (4, 2, 13 | ZERO)]
    assert Stack([found]).read_at(0, 1024) == DATA[1024:1536] + DATA[512:1024]
    for length in range(len(raw)):
        with pytest.raises(FormatError):
            read_layer(Bytes(raw[:length]))


def test_reads_a_sparse_one_that_was_sealed_in_place() -> None:
    """The index is behind the end of the device, most of which is a hole in the file."""
    size = 64 * 512
    index = rows((1, 2, 9), (60, 4, 68))
    image = bytearray(size)
    image[512:1536], image[60 * 512 :] = DATA[:1024], DATA[:2048]
    trailer = record(0x16, (4096 + size, 2), size)
    raw = record(0x13, size=size) + image + index + noise(512 - len(index)) + trailer
    stack = Stack([read_layer(Bytes(raw))])
    assert stack.size == size
    assert stack.read_at(0, size) == image


def test_opens_in_any_wrapping() -> None:
    zfile = make_zfile(lz4_blocks(LAYER), len(LAYER))
    member = tarfile.TarInfo("overlaybd.commit")
    member.size = len(zfile)
    tar = member.tobuf(tarfile.USTAR_FORMAT)
    for raw in (LAYER, zfile, tar + zfile):
        assert is_layer(Bytes(raw))
        assert Stack([open_layer(Bytes(raw))]).read_at(1024, 1536) == DATA[:1536]
    directory = tarfile.TarInfo("d")
    directory.type = tarfile.DIRTYPE
    for other in (noise(4096), b"", directory.tobuf(tarfile.USTAR_FORMAT)):
        assert not is_layer(Bytes(other))
    with pytest.raises(FormatError, match="magic"):
        open_layer(Bytes(noise(9000)))


def test_cut_off() -> None:
    for length in range(len(LAYER)):
        with pytest.raises(FormatError):
            read_layer(Bytes(LAYER[:length]))


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (rows((5, 2, 8), (6, 1, 10)), "from sector 7 on, got one of sector 6"),
        (rows((5, 1, 8), (4, 1, 10)), "from sector 6 on, got one of sector 4"),
        (rows((5, 0, 8)), "a length"),
        (rows((5, 2, 7)), "sectors 8 to 14 .* got sectors 7 to 9"),
        (rows((5, 7, 8)), "sectors 8 to 14 .* got sectors 8 to 15"),
        (rows((5, 1, (1 << 55) - 1)), "sectors 8 to 14"),
        (rows((5, 1, 7 | ZERO)), "sectors 8 to 14"),
        (rows((5, 1, 15 | ZERO)), "sectors 8 to 14"),
    ],
)
def test_indexes_refused(index: bytes, expected: str) -> None:
    with pytest.raises(FormatError, match=expected):
        read_layer(Bytes(make_layer(DATA, index)))


@pytest.mark.parametrize(
    ("header", "trailer", "expected"),
    [
        (record(6), record(6, (4096, 0)), "flags"),
        (record(5), record(6, (4096, 0)), "flags"),
        (record(7), record(7, (4096, 0)), "flags"),
        (record(7), record(2, (4096, 0)), "flags"),
        (record(7), record(4, (4096, 0)), "flags"),
        (record(7), record(6, (4095, 0)), "an index"),
        (record(7), record(6, (4096, 1)), "an index"),
        (record(7), record(6, (1 << 63, 0)), "an index"),
        (record(7), record(6, (4096, 1_000_001)), "at most 1000000 mappings"),
        (record(7), record(6, (4096, 0), 513), "sectors of a device"),
        (record(7), record(6, (4096, 0), 1 << 60), "sectors of a device"),
        (record(7), record(6, (4096, 0), uuid=b"x" * 36), "a UUID"),
        (record(7), record(6, (4096, 0), version=(2, 1)), "version"),
        (record(7), record(6, (4096, 0), record_size=391), "390 bytes"),
        (record(7), bytes(4096), "magic"),
    ],
)
def test_records_refused(header: bytes, trailer: bytes, expected: str) -> None:
    with pytest.raises(FormatError, match=expected):
        read_layer(Bytes(header + trailer))


def test_the_uppermost_layer_with_a_size_has_its_say() -> None:
    lower, upper = layer(b"", size=1 << 20), layer(b"", size=0)
    assert Stack([layer(b"", size=512), lower, upper]).size == 1 << 20
    assert list(Stack([layer(DATA, (0, 3, 8), size=1024)]).extents()) == [Extent(0, 1024, 0, 4096)]
    with pytest.raises(FormatError, match="size of the device"):
        Stack([upper])
    with pytest.raises(InvalidArgument, match="at most 255"):
        merge([mapped([])] * 256)


def test_zeros_hide_and_holes_do_not() -> None:
    lower = layer(DATA, (0, 6, 8))
    upper = layer(DATA, (1, 1, 9 | ZERO), (3, 1, 13))
    stack = Stack([lower, upper])
    assert stack.lookup(0, 8 * 512) == [
        Extent(0, 512, 0, 4096),
        Extent(512, 512, ZEROS, 0),
        Extent(1024, 512, 0, 4096 + 1024),
        Extent(1536, 512, 1, 4096 + 5 * 512),
        Extent(2048, 1024, 0, 4096 + 4 * 512),
        Extent(3072, 1024, HOLE, 0),
    ]
    expected = DATA[:512] + bytes(512) + DATA[1024:1536] + DATA[2560:3072] + DATA[2048:3072]
    assert stack.read_at(0, 4096) == expected + bytes(1024)
    assert stack.lookup(600, 500) == [Extent(600, 424, ZEROS, 0), Extent(1024, 76, 0, 5120)]


def test_merge_of_known_layers() -> None:
    lower = [(0, 1, 7), (2, 4, 5), (15, 10, 22), (30, 15, 89), (87, 50, 32), (150, 10, 84)]
    upper = [(5, 5, 0), (10, 10, 50), (100, 10, 20)]
    above = 1 << 56
    assert listed(merge([mapped(lower), mapped(upper)])) == [
        (0, 1, 7),
        (2, 3, 5),
        (5, 5, above),
        (10, 10, above | 50),
        (20, 5, 27),
        (30, 15, 89),
        (87, 13, 32),
        (100, 10, above | 20),
        (110, 27, 55),
        (150, 10, 84),
    ]


def test_replay_of_a_known_log() -> None:
    log = [(0, 20, 0), (10, 15, 50), (30, 100, 20), (5, 10, 3), (40, 10, 123), (200, 10, 2133)]
    assert listed(replay(mapped([*log, (150, 100, 21)]))) == [
        (0, 5, 0),
        (5, 10, 3),
        (15, 10, 55),
        (30, 10, 20),
        (40, 10, 123),
        (50, 80, 40),
        (150, 100, 21),
    ]


def test_mappings_that_follow_each_other_become_one() -> None:
    assert listed(replay(mapped([(5, 5, 0), (10, 10, 5), (100, 10, 20)]))) == [
        (5, 15, 0),
        (100, 10, 20),
    ]


def test_reads_a_layer_that_is_written_to() -> None:
    log = record(1, (4096, 0)) + rows((0, 4, 8), (1, 1, 12), (2, 1, 13 | ZERO)) + PADDING + b"cut"
    found = read_writable(Bytes(record(3) + DATA), Bytes(log))
    assert listed(found.mappings) == [(0, 1, 8), (1, 1, 12), (2, 1, 13 | ZERO), (3, 1, 11)]
    assert Stack([found]).read_at(512, 512) == DATA[2048:2560]
    with pytest.raises(FormatError, match="sectors 8 to 13"):
        read_writable(Bytes(record(3) + DATA[512:]), Bytes(log[:4096] + rows((9, 2, 12))))
    with pytest.raises(FormatError, match="sparse"):
        read_writable(Bytes(record(0x13)), Bytes(log))


def test_reads_a_sparse_layer() -> None:
    raw = record(0x13, size=40_000 * 512) + bytes(40_000 * 512)
    image = bytearray(raw)
    image[4096 + 512 : 4096 + 1536] = DATA[:1024]
    source = Bytes(image)
    # The header and the hole behind it, a block with half a sector at each end, one that begins in
    # the sector where the last one ends, and more than a mapping can have.
    extents = [(0, 4096), (4700, 900), (5620, 12), (8192, 20_000 * 512)]
    found = read_sparse(source, extents)
    assert listed(found.mappings) == [
        (1, 2, 9),
        (8, 16383, 16),
        (8 + 16383, 3617, 16 + 16383),
    ]
    assert found.about.virtual_size == 40_000 * 512
    assert Stack([found]).read_at(0, 2048) == image[4096:6144]
    assert listed(read_sparse(source, [(0, len(raw))]).mappings)[0] == (0, 16383, 8)
    assert not read_sparse(source, []).mappings


def test_sparse_layers_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = record(0x13) + DATA
    for length in range(len(record(0x13))):
        with pytest.raises(FormatError, match="a header and sectors"):
            read_sparse(Bytes(raw[:length]), [])
    with pytest.raises(FormatError, match="a header and sectors"):
        read_sparse(Bytes(raw + b"x"), [])
    with pytest.raises(FormatError, match="a sparse layer"):
        read_sparse(Bytes(record(3)), [])
    with pytest.raises(FormatError, match="flags"):
        read_sparse(Bytes(record(0x16)), [])
    for extents in ([(0, len(raw) + 1)], [(-1, 2)], [(512, -1)], [(4096, 512), (4607, 1)]):
        with pytest.raises(InvalidArgument, match="sparse LSMT extent"):
            read_sparse(Bytes(raw), extents)
    monkeypatch.setattr(reader, "MAX_LOGGED", 1)
    with pytest.raises(FormatError, match="at most 1 mappings"):
        read_sparse(Bytes(raw), [(4096, 512), (5120, 512)])


@settings(max_examples=100, deadline=None)
@example([(4097, 0)])
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000)), max_size=6))
def test_any_sparse_layer(runs: list[tuple[int, int]]) -> None:
    extents, position = [], 0
    for gap, length in runs:
        extents.append((position + gap, length))
        position += gap + length
    raw = bytearray(record(0x13).ljust(4096 + 36_000 // 512 * 512 + 512, b"\0"))
    expected = set()
    for offset, length in extents:
        first = max(offset, 4096)
        if first < offset + length:
            raw[first : offset + length] = noise(offset + length - first)
            expected |= set(range(first // 512, -(-(offset + length) // 512)))
    found = read_sparse(Bytes(raw), extents)
    assert all(start == place - 8 for start, _, place in listed(found.mappings))
    assert expected == {
        place + at for _, length, place in listed(found.mappings) for at in range(length)
    }
    size = len(raw) - 4096
    assert Stack([found]).read_at(0, size) == raw[4096:]


def test_many_mappings_are_swept_in_windows() -> None:
    """Of layers each of which has a sector here and there, against a picture of the device."""
    chance = random.Random(1)
    layers = []
    picture: dict[int, int] = {}
    for number in range(100):
        taken = sorted(chance.sample(range(40_000), 700))
        layers.append(mapped([(sector, 1, 8 + row * 2) for row, sector in enumerate(taken)]))
        for row, sector in enumerate(taken):
            picture[sector] = number << 56 | 8 + row * 2
    assert listed(merge(layers)) == [(at, 1, place) for at, place in sorted(picture.items())]


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_MERGED", "MAX_LOGGED"):
        monkeypatch.setattr(merging, name, 2)
    monkeypatch.setattr(reader, "MAX_LOGGED", 2)
    two, three = (mapped([(at, 1, 8) for at in range(0, 2 * count, 2)]) for count in (2, 3))
    assert listed(merge([two])) == listed(replay(two)) == listed(two)
    with pytest.raises(ResourceExhausted):
        merge([two, two])
    with pytest.raises(ResourceExhausted):
        replay(three)
    with pytest.raises(ResourceExhausted):
        replay_writes([Extent(0, 3 * 16383 * 512, ZEROS, 0)])
    with pytest.raises(FormatError, match="a log of at most 2"):
        read_writable(Bytes(record(3) + DATA), Bytes(record(1) + rows(*listed(three))))


WRITES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 20), st.integers(8, 90), st.booleans()),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(WRITES, min_size=1, max_size=4))
def test_any_layers(layers: list[list[tuple[int, int, int, bool]]]) -> None:
    """Against a picture of the device, sector by sector: what is written last shows."""
    picture: dict[int, tuple[int, int]] = {}
    found = []
    for number, writes in enumerate(layers):
        extents = []
        for start, length, first, zeros in writes:
            for sector in range(length):
                told = (ZEROS, 0) if zeros else (number, (first + sector) * 512)
                picture[start + sector] = told
            told = (ZEROS, 0) if zeros else (0, first * 512)
            extents.append(Extent(start * 512, length * 512, *told))
        found.append(replay_writes(extents))
    merged = merge(found)
    expected = [picture.get(sector, (HOLE, 0)) for sector in range(90)]
    assert [merged.lookup(at * 512, 512)[0][2:] for at in range(90)] == expected
    assert [
        (layer, place + at if layer >= 0 else 0)
        for _, length, layer, place in merged.lookup(0, 90 * 512)
        for at in range(0, length, 512)
    ] == expected
    whole = list(merged.extents())
    assert all(one.offset + one.length <= two.offset for one, two in pairwise(whole))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=4))
def test_changes(changes: list[tuple[int, int]]) -> None:
    """Of the index and the trailer: what is read then lies inside of the file."""
    raw = bytearray(LAYER)
    for at, value in changes:
        raw[4096 + len(DATA) + at % (len(INDEX) + 390)] = value
    try:
        stack = Stack([read_layer(Bytes(bytes(raw)))])
    except FormatError:
        return
    for extent in stack.extents():
        stack.read_at(extent.offset, extent.length)


def test_large_places() -> None:
    word = (1 << 50) - 2
    raw = make_layer(DATA, struct.pack("<QQ", 1 << 50 | word, 8))
    stack = Stack([read_layer(Bytes(raw))])
    assert stack.mappings.lookup(word * 512, 512) == [Extent(word * 512, 512, 0, 4096)]
