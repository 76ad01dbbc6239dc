"""Gzip blobs that are read at any place by an index, and indexes that are refused."""

from __future__ import annotations

import gzip
import io
import random
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import igzip_lib

from lamina.errors import FormatError, InvalidArgument, NotImplementedHere, OutOfRange
from lamina.formats import gzip_index, gzip_source
from lamina.formats.deflate import Point
from lamina.formats.gzip_index import Span, read_gzip_index, write_gzip_index
from lamina.formats.gzip_source import GzipSource
from tests.erofs import Bytes
from tests.gzip_index import Entry, make_index, pack_index, points_of
from tests.rafs import noise

DATA = noise(300_000).hex().encode() + bytes(1 << 20) + noise(200_000, b"more") + b"end"
BLOBS = {
    "zlib": gzip.compress(DATA, 6, mtime=0),
    "stored": gzip.compress(DATA, 0, mtime=0),
    "isa-l": igzip_lib.compress(DATA, 3, igzip_lib.COMP_GZIP),
}
BLOB = BLOBS["zlib"]
INDEX = make_index(BLOB, len(DATA))
WINDOW = zlib.compress(bytes(1 << 15))
ENTRIES: list[Entry] = [(0, 10, 333, 0, len(WINDOW)), (3000, 600, 333, 3, len(WINDOW))]


def opened(blob: bytes, index: bytes) -> GzipSource:
    return GzipSource(Bytes(blob), read_gzip_index(Bytes(index)))


@pytest.mark.parametrize("blob", BLOBS.values(), ids=BLOBS.keys())
def test_reads_at_any_place(blob: bytes) -> None:
    source = opened(blob, make_index(blob, len(DATA)))
    assert source.size == len(DATA)
    assert source.read_at(0, len(DATA)) == DATA
    chance = random.Random(1)
    for _ in range(60):
        start = chance.randrange(len(DATA))
        length = chance.randrange(min(200_000, len(DATA) - start) + 1)
        assert source.read_at(start, length) == DATA[start : start + length]
    assert source.read_at(len(DATA), 0) == b""
    for start, length in ((len(DATA), 1), (-1, 1), (0, -1), (1, len(DATA))):
        with pytest.raises(OutOfRange):
            source.read_at(start, length)


def test_places_begin_within_bytes() -> None:
    index = read_gzip_index(Bytes(INDEX))
    spans = [index.span(number) for number in range(len(index))]
    bits = {span.bits for span in spans}
    assert len(bits) > 3
    assert {number % 2 for number in bits} == {0, 1}
    assert spans[0] == Span(0, spans[1].out_offset, 10, spans[0].in_size, 0)
    assert spans[-1].in_offset + spans[-1].in_size == index.gzip_size == len(BLOB)
    assert [index.find(span.out_offset) for span in spans] == list(range(len(spans)))
    assert index.find(len(DATA) - 1) == len(spans) - 1
    assert index.window(0) == bytes(1 << 15)
    at = spans[3].out_offset
    assert index.window(3) == DATA[at - (1 << 15) : at]


def test_early_windows_have_zeros_before_them() -> None:
    points = points_of(BLOB)
    early = [Point(0, *points[0][1:]), Point(100, 50, 2, 7, DATA[:100])]
    out = io.BytesIO()
    told = write_gzip_index(out, early, size=5000, gzip_size=1000)
    assert told == len(out.getvalue())
    index = read_gzip_index(Bytes(out.getvalue()))
    assert index.window(1) == bytes((1 << 15) - 100) + DATA[:100]
    assert index.span(1) == Span(100, 4900, 49, 951, 2)


def test_is_as_made_by_hand() -> None:
    out = io.BytesIO()
    window = noise(1 << 15)
    points = [Point(0, 10, 0, 0, b""), Point(3000, 600, 3, 0xFF, window)]
    write_gzip_index(out, points, size=5000, gzip_size=1000)
    windows = [zlib.compress(data, 6) for data in (bytes(1 << 15), window)]
    sizes = [len(data) for data in windows]
    entries = [(0, 10, 333, 0, sizes[0]), (3000, 600, 333 + sizes[0], 3, sizes[1])]
    assert out.getvalue() == pack_index(entries, b"".join(windows))
    assert out.tell() == len(out.getvalue())


def test_as_overlaybd_makes_it() -> None:
    """By turboOCI-apply, of a blob of less than a MiB of output."""
    raw = (
        bytes.fromhex(
            "6464677a69647800" "01" "00" "01" "06" "00" "00001000" "00800000" "1d000000"
            "0100000000000000" "b9bd0d0000000000" "9501000000000000" "00e80d0000000000"
        )
        + bytes(256)
        + bytes.fromhex(
            "8101000000000000" "1400000000000000" "3094c8c1"
            "789cedc101010000008090feafee080a" + "00" * 31 + "1880000001"
            "789c636080002e28edcb08659800310005b4008d"
        )
    )  # fmt: skip
    index = read_gzip_index(Bytes(raw))
    assert [index.span(number) for number in range(len(index))] == [
        Span(0, 911_360, 10, 900_537 - 10, 0)
    ]
    assert index.window(0) == bytes(1 << 15)
    out = io.BytesIO()
    write_gzip_index(out, [Point(0, 10, 0, 0, b"")], size=911_360, gzip_size=900_537)
    again = read_gzip_index(Bytes(out.getvalue()))
    assert (again.span(0), again.window(0)) == (index.span(0), index.window(0))


def test_without_compression() -> None:
    """As some write it: windows and entries as they are; places may come twice."""
    points = points_of(BLOB)
    points.insert(1, points[0])
    windows = b"".join(point.window.rjust(1 << 15, b"\0") for point in points)
    entries = [
        (point.out_offset, point.in_offset, 333 + (number << 15), point.bits, 1 << 15)
        for number, point in enumerate(points)
    ]
    sizes: dict[str, int | bytes] = {"size": len(DATA), "gzip_size": len(BLOB)}
    source = opened(BLOB, pack_index(entries, windows, sizes, compress=False))
    assert source.read_at(0, len(DATA)) == DATA


@pytest.mark.parametrize("compress", [True, False])
def test_cut_off(compress: bool) -> None:
    windows = WINDOW if compress else bytes(1 << 15)
    entries = [(*entry[:4], len(windows)) for entry in ENTRIES]
    index = pack_index(entries, windows, compress=compress)
    assert len(read_gzip_index(Bytes(index))) == 2
    lengths = range(len(index)) if compress else [*range(400), *range(len(index) - 100, len(index))]
    for length in lengths:
        with pytest.raises(FormatError):
            read_gzip_index(Bytes(index[:length]))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"magic": b"ddgzidy\0"}, "magic"),
        ({"major": 2}, "version 1, got 2"),
        ({"compressed": 2}, "zlib"),
        ({"window": 1 << 14}, "windows of 32768"),
        ({"entry_size": 30}, "entries of 29"),
        ({"entries": 0}, "1 to 1048576 entries"),
        ({"entries": -1}, "1 to 1048576 entries"),
        ({"entries": (1 << 20) + 1}, "1 to 1048576 entries"),
        ({"entries": 1}, "29 bytes in data of zlib"),
        ({"entries": 3}, "87 bytes in data of zlib"),
        ({"gzip_size": -1}, "sizes"),
        ({"size": -1}, "sizes"),
        ({"file_size": 5}, "got 5"),
        ({"index_start": 332}, "entries up to byte"),
        ({"index_start": 1 << 62}, "entries up to byte"),
        ({"index_size": 1}, "entries up to byte"),
        ({"size": 2999}, "entry 1 at a byte of output"),
        ({"gzip_size": 599}, "entry 1 at a byte of the blob"),
        ({"size": 3001 + (1 << 26)}, "67108864 bytes behind the last entry"),
    ],
)
def test_headers_refused(fields: dict[str, int | bytes], expected: str) -> None:
    with pytest.raises(FormatError, match=expected):
        read_gzip_index(Bytes(pack_index(ENTRIES, WINDOW, fields)))


@pytest.mark.parametrize(
    ("number", "field", "value", "expected"),
    [
        (0, 0, 1, "entry 0 at a byte of output"),
        (1, 0, -1, "entry 1 at a byte of output"),
        (1, 0, 5001, "entry 1 at a byte of output"),
        (0, 1, -1, "entry 0 at a byte of the blob"),
        (1, 1, 9, "entry 1 at a byte of the blob from 10 on"),
        (1, 1, 1001, "entry 1 at a byte of the blob"),
        (1, 3, 8, "8 bits"),
        (0, 2, 332, "a window of entry 0"),
        (0, 2, 1 << 62, "a window of entry 0"),
        (1, 4, len(WINDOW) + 1, "a window of entry 1"),
        (1, 4, 0, "a window of entry 1"),
    ],
)
def test_entries_refused(number: int, field: int, value: int, expected: str) -> None:
    changed = list(ENTRIES[number])
    changed[field] = value
    entries = list(ENTRIES)
    entries[number] = (changed[0], changed[1], changed[2], changed[3], changed[4])
    with pytest.raises(FormatError, match=expected):
        read_gzip_index(Bytes(pack_index(entries, WINDOW)))


def test_bits_need_a_byte_before() -> None:
    with pytest.raises(FormatError, match="byte 0 and 1 bits"):
        read_gzip_index(Bytes(pack_index([(0, 0, 333, 1, len(WINDOW))], WINDOW)))


def test_spans_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzip_index, "MAX_SPAN", 2999)
    with pytest.raises(FormatError, match="at most 2999 bytes before entry 1"):
        read_gzip_index(Bytes(pack_index(ENTRIES, WINDOW)))
    with pytest.raises(NotImplementedHere, match="3000 bytes between places"):
        points = [Point(0, 10, 0, 0, b""), Point(3000, 20, 0, 0, b"x")]
        write_gzip_index(io.BytesIO(), points, size=3000, gzip_size=30)


@pytest.mark.parametrize(
    "window", [noise(200), zlib.compress(bytes(9)), zlib.compress(b"x" * 32769)]
)
def test_windows_refused(window: bytes) -> None:
    index = read_gzip_index(Bytes(pack_index([(0, 10, 333, 0, len(window))], window)))
    with pytest.raises(FormatError, match="zlib"):
        index.window(0)


def test_a_wrong_crc() -> None:
    raw = bytearray(INDEX)
    raw[100] ^= 1
    with pytest.raises(FormatError, match="CRC-32C"):
        read_gzip_index(Bytes(raw))


@pytest.mark.parametrize(
    "points",
    [
        [],
        [Point(1, 10, 0, 0, b"")],
        [Point(0, 10, 0, 0, b""), Point(9, 20, 0, 0, b"x"), Point(8, 30, 0, 0, b"x")],
        [Point(0, 10, 0, 0, b""), Point(101, 20, 0, 0, b"x")],
    ],
)
def test_points_refused(points: list[Point]) -> None:
    with pytest.raises(InvalidArgument):
        write_gzip_index(io.BytesIO(), points, size=100, gzip_size=50)


def test_several_members_are_not_indexed() -> None:
    blob = gzip.compress(b"one") + gzip.compress(b"two")
    with pytest.raises(NotImplementedHere, match="several members"):
        make_index(blob, 6)


def test_what_follows_the_first_member_is_not_covered() -> None:
    """As overlaybd indexes it: up to the end of the first member, in a blob with more."""
    first = gzip.compress(DATA[:200_000], 6)
    blob = first + gzip.compress(DATA[200_000:])
    out = io.BytesIO()
    write_gzip_index(out, points_of(first), size=200_000, gzip_size=len(blob))
    source = opened(blob, out.getvalue())
    assert source.read_at(0, 200_000) == DATA[:200_000]
    with pytest.raises(OutOfRange):
        source.read_at(199_999, 2)
    too_much = io.BytesIO()
    write_gzip_index(too_much, points_of(first), size=200_001, gzip_size=len(blob))
    with pytest.raises(FormatError, match="1 more bytes of output, got the end of a gzip member"):
        opened(blob, too_much.getvalue()).read_at(200_000, 1)


def test_the_index_of_another_blob() -> None:
    with pytest.raises(FormatError, match="the index of a blob of"):
        opened(BLOB[:-1], INDEX)


def test_a_damaged_blob() -> None:
    damaged = bytearray(BLOB)
    damaged[10] = 0xFF  # a block of a type that there is none of
    source = opened(bytes(damaged), INDEX)
    with pytest.raises(FormatError, match="gzip data"):
        source.read_at(0, len(DATA))
    # What failed is tried again; what lies elsewhere is not concerned.
    with pytest.raises(FormatError):
        source.read_at(0, len(DATA))
    assert source.read_at(len(DATA) - 3, 3) == b"end"


def test_spans_are_kept_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    blob = Bytes(BLOB)
    index = read_gzip_index(Bytes(INDEX))
    source = GzipSource(blob, index)
    source.read_at(0, len(DATA))
    reads = blob.reads
    assert reads == len(index)
    source.read_at(0, len(DATA))
    assert blob.reads == reads
    first, second = index.span(0), index.span(1)
    monkeypatch.setattr(gzip_source, "KEPT", first.out_size + second.out_size)
    source = GzipSource(blob, index)
    for at, asked in (
        (0, 1),
        (second.out_offset, 1),
        (0, 0),
        (index.span(2).out_offset, 1),  # the second was asked for longest ago
        (0, 0),
        (second.out_offset, 1),
    ):
        reads = blob.reads
        assert source.read_at(at, 9) == DATA[at : at + 9]
        assert blob.reads - reads == asked, at


class Slow(Bytes):
    """A blob that waits until it is told to go on."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.asked = threading.Event()
        self.go = threading.Event()

    def read_at(self, offset: int, length: int) -> bytes:
        self.asked.set()
        assert self.go.wait(30)
        return super().read_at(offset, length)


def test_threads_wait_for_each_other() -> None:
    blob = Slow(BLOB)
    source = GzipSource(blob, read_gzip_index(Bytes(INDEX)))
    with ThreadPoolExecutor(6) as pool:
        found = [pool.submit(source.read_at, at, 50) for at in (0, 1, 2, 3, 4, 5)]
        assert blob.asked.wait(30)
        blob.go.set()
        assert [one.result() for one in found] == [DATA[at : at + 50] for at in range(6)]
        assert blob.reads == 1
        ranges = [(at, 100_000) for at in range(0, len(DATA) - 100_000, 7_000)] * 2
        random.Random(2).shuffle(ranges)
        results = pool.map(lambda one: source.read_at(*one), ranges)
        for (at, length), data in zip(ranges, results, strict=True):
            assert data == DATA[at : at + length]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40_000), st.booleans()), max_size=6),
    st.integers(0, 9),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 1 << 20)), max_size=6),
)
def test_any_blob(runs: list[tuple[int, bool]], level: int, reads: list[tuple[int, int]]) -> None:
    data = b"".join(noise(size).hex().encode() if odd else noise(size) for size, odd in runs)
    blob = gzip.compress(data, level)
    source = opened(blob, make_index(blob, len(data), 1 << 14))
    for one, other in reads:
        start, stop = sorted((one % (len(data) + 1), other % (len(data) + 1)))
        assert source.read_at(start, stop - start) == data[start:stop]
