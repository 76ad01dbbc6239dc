"""Traces and lists of paths of acceleration layers, and where on a device traces lead."""

from __future__ import annotations

import io
import struct
import tarfile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lamina.errors import FormatError, InvalidArgument, ResourceExhausted
from lamina.formats.crc32c import crc32c
from lamina.formats.lsmt.layout import SECTOR
from lamina.formats.lsmt.reader import Layer, read_layer
from lamina.formats.lsmt.stack import Stack
from lamina.formats.overlaybd import places, trace
from lamina.formats.overlaybd.places import Range, device_ranges
from lamina.formats.overlaybd.priorities import (
    MAX_SIZE,
    Priority,
    read_priorities,
    write_priorities,
)
from lamina.formats.overlaybd.trace import Access, is_trace, layer_tar, read_trace, write_trace
from tests.erofs import Bytes
from tests.lsmt import ZERO, Row, make_layer, rows
from tests.rafs import noise

TRACE = bytes.fromhex(
    "2018efc2" "00000000" "3000000000000000" "27652687" "00000000"
    "52" "000000" "02000000" "0010000000000000" "0000010000000000"
    "52" "000000" "00000000" "0002000000000000" "0010000000000000"
)  # fmt: skip
ACCESSES = [Access(2, 65536, 4096), Access(0, 4096, 512)]


def sealed(*found: tuple[bytes, int, int, int], size: int | None = None) -> bytes:
    """Return a trace of accesses: kind, layer, length and place."""
    body = b"".join(struct.pack("<cxxxIQq", *one) for one in found)
    told = len(body) if size is None else size
    return struct.pack("<IIQII", 0xC2EF1820, 0, told, crc32c(0, body), 0) + body


def test_reads_and_writes() -> None:
    assert read_trace(TRACE) == ACCESSES
    assert write_trace(ACCESSES) == TRACE
    assert read_trace(write_trace([])) == []
    assert is_trace(TRACE)
    assert not is_trace(b"")
    assert not is_trace(b"/usr/bin")


def test_as_overlaybd_records_it() -> None:
    """While overlaybd-apply put a layer above another one: header, trailer and index come first."""
    raw = bytes.fromhex(
        "2018efc2385600006801000000000000b55a45cffe7f0000"
        "521000000000000000100000000000000000000000000000"
        "521000000000000000100000000000000048620000000000"
        "521000000000000000100000000000000038620000000000"
        "520400000000000000040000000000000014000000000000"
        "520002000000000000000200000000000010000000000000"
        "520002000000000000000200000000000010080000000000"
        "520002000000000000000200000000000024540000000000"
        "520002000000000000000200000000000024560000000000"
        "520002000000000000000200000000000024580000000000"
        "5200020000000000000002000000000000245a0000000000"
        "5200020000000000000002000000000000245c0000000000"
        "5200020000000000000002000000000000245e0000000000"
        "520002000000000000000200000000000038600000000000"
        "5200020000000000000002000000000000100a0000000000"
        "520002000000000000000200000000000010520000000000"
    )
    found = read_trace(raw)
    assert len(found) == 15
    assert found[:5] == [
        Access(0, 0, 4096),
        Access(0, 6440960, 4096),
        Access(0, 6436864, 4096),
        Access(0, 5120, 1024),
        Access(0, 4096, 131072),
    ]


def test_padding_is_anything() -> None:
    raw = bytearray(TRACE)
    raw[4:8] = raw[20:24] = b"junk"
    raw[25:28] = raw[49:52] = b"\xff\1\2"
    raw[16:20] = crc32c(0, bytes(raw[24:])).to_bytes(4, "little")
    assert read_trace(bytes(raw)) == ACCESSES


def test_what_is_no_read_is_passed_over() -> None:
    assert read_trace(sealed((b"W", 1, 2, 3), (b"R", 4, 5, 6))) == [Access(4, 6, 5)]


def test_cut_off() -> None:
    for length in range(len(TRACE)):
        with pytest.raises(FormatError):
            read_trace(TRACE[:length])


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"\0" + TRACE[1:], "the magic"),
        (TRACE + b"\0", "accesses of 24 bytes"),
        (TRACE[:-1] + b"\1", "the CRC-32C"),
        (sealed((b"R", 0, 1, 0), size=48), "accesses of 24 bytes"),
        (sealed(size=1 << 63), "accesses of 24 bytes"),
        (sealed((b"R", 0, 1, -1)), "a place in a file, got 1 bytes at -1"),
        (sealed((b"R", 0, 1, 0), (b"R", 0, 1 << 63, 0)), "at byte 48: .* a place in a file"),
        (sealed((b"R", 0, 2, (1 << 63) - 2)), "a place in a file"),
    ],
)
def test_traces_refused(raw: bytes, expected: str) -> None:
    with pytest.raises(FormatError, match=expected):
        read_trace(raw)


def test_as_many_as_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "MAX_ACCESSES", 1)
    assert len(read_trace(write_trace(ACCESSES[:1]))) == 1
    with pytest.raises(ResourceExhausted):
        write_trace(ACCESSES)
    with pytest.raises(FormatError, match="at most 1 accesses"):
        read_trace(TRACE)


@pytest.mark.parametrize(
    "access",
    [Access(-1, 0, 0), Access(1 << 32, 0, 0), Access(0, -1, 0), Access(0, 1 << 62, 1 << 62)],
)
def test_accesses_refused(access: Access) -> None:
    with pytest.raises(InvalidArgument, match="overlaybd trace"):
        write_trace([access])


PLACES = st.integers(0, (1 << 62) - 1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.builds(Access, st.integers(0, (1 << 32) - 1), PLACES, PLACES), max_size=9))
def test_any_accesses(accesses: list[Access]) -> None:
    assert read_trace(write_trace(accesses)) == accesses


def test_the_layer_is_a_tar_of_one_file() -> None:
    raw = layer_tar(TRACE)
    assert len(raw) == 512 + 512 + 1024
    assert raw[100:156] == (
        b"0000444\0" b"0000000\0" b"0000000\0" b"00000000110\0" b"00000000000\0" b"010214\0 "
    )  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        (member,) = tar.getmembers()
        body = tar.extractfile(member)
        assert body is not None
        assert (member.name, member.mode, body.read()) == ("trace", 0o444, TRACE)


def test_reads_a_list_of_paths() -> None:
    raw = b"/usr/bin/python3\n\n  etc/ssl/ \n/usr/lib/*\r\n/opt/a*\n./x//y\n/\n/usr/bin/python3"
    assert read_priorities(raw) == [
        Priority(b"/usr/bin/python3"),
        Priority(b"/etc/ssl", tree=True),
        Priority(b"/usr/lib", tree=True),
        Priority(b"/opt/a", tree=True),
        Priority(b"/x/y"),
        Priority(b"/", tree=True),
    ]
    assert read_priorities(b"") == []


@pytest.mark.parametrize("path", [b"/a/../b", b"..", b"/a\0b"])
def test_paths_refused(path: bytes) -> None:
    with pytest.raises(FormatError, match="at byte 3: expected a path without NUL"):
        read_priorities(b"/a\n" + path)
    with pytest.raises(InvalidArgument, match="priority"):
        write_priorities([Priority(path)])


def test_lists_are_not_longer_than_overlaybd_reads() -> None:
    whole = b"/" + b"a" * (MAX_SIZE - 1)
    assert read_priorities(whole) == [Priority(whole)]
    with pytest.raises(FormatError):
        read_priorities(whole + b"\n")
    with pytest.raises(ResourceExhausted):
        write_priorities([Priority(whole[:-1])] * 2)


@pytest.mark.parametrize("path", [b"", b"a", b"/a/", b"//a", b"/a*", b"/a ", b"/a\nb", b"/"])
def test_paths_not_written(path: bytes) -> None:
    with pytest.raises(InvalidArgument, match="priority"):
        write_priorities([Priority(path)])


NAMES = st.binary(min_size=1, max_size=6).filter(
    lambda name: name not in {b".", b".."} and not set(name) & set(b"/\0\n*\r\t ")
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=3), st.booleans()), max_size=6))
@example([])
def test_any_paths(paths: list[tuple[list[bytes], bool]]) -> None:
    told = [Priority(b"/" + b"/".join(names), tree) for names, tree in paths]
    raw = write_priorities([*told, Priority(b"/", tree=True)])
    assert read_priorities(raw) == [*dict.fromkeys(told), Priority(b"/", tree=True)]


DATA = noise(40 * SECTOR)


def layer(*found: Row) -> Layer:
    return read_layer(Bytes(make_layer(DATA, rows(*found), 100 * SECTOR)))


def ranges(stack: Stack, *accesses: tuple[int, int, int]) -> list[Range]:
    return list(device_ranges(stack, [Access(*one) for one in accesses]))


def test_places_lead_to_the_device() -> None:
    lower = layer((0, 4, 10), (20, 4, 8), (30, 2, 14), (95, 20, 16))
    upper = layer((1, 1, 8), (2, 1, 8 | ZERO), (50, 1, 9), (51, 2, 30))
    stack = Stack([lower, upper])
    sector = SECTOR
    # Mappings of layer 0 by their place: 8 to 12 at sector 20, 10 at 0, 13 at 3 (the others of it
    # are hidden), 14 at 30, 16 at 95, of which 5 are on the device.
    assert ranges(stack, (0, 8 * sector, 2 * sector)) == [(20 * sector, 2 * sector)]
    assert ranges(stack, (0, 0, 40 * sector)) == [
        (20 * sector, 4 * sector),
        (0, sector),
        (3 * sector, sector),
        (30 * sector, 2 * sector),
        (95 * sector, 5 * sector),
    ]
    assert ranges(stack, (0, 13 * sector + 7, 5)) == [(3 * sector + 7, 5)]
    assert ranges(stack, (0, 13 * sector + 500, 1000)) == [
        (3 * sector + 500, 12),
        (30 * sector, 988),
    ]
    assert ranges(stack, (0, 21 * sector, 1), (0, 20 * sector, 1)) == [(99 * sector, 1)]
    # Neighbours on the device are one range where they are in the file; layers are told apart.
    assert ranges(stack, (1, 9 * sector, sector), (1, 8 * sector, 40 * sector)) == [
        (50 * sector, sector),
        (1 * sector, sector),
        (50 * sector, 3 * sector),
    ]
    # A header, an index, nothing, no such layer.
    nothing = ((0, 0, 4096), (0, 48 * sector, 99), (0, 8 * sector, 0), (2, 0, 1 << 60))
    assert ranges(stack, *nothing) == []
    assert list(device_ranges(stack, [])) == []


def test_places_that_many_mappings_lead_to(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack([layer(*((at, 1, 9) for at in range(0, 60, 2)), (70, 9, 8))])
    found = ranges(stack, (0, 9 * SECTOR, SECTOR))
    assert sorted(found) == [
        *((at * SECTOR, SECTOR) for at in range(0, 60, 2)),
        (71 * SECTOR, SECTOR),
    ]
    monkeypatch.setattr(places, "MAX_STEPS", 60)
    assert len(ranges(stack, (0, 9 * SECTOR, 1))) == 31
    with pytest.raises(ResourceExhausted, match="60 places"):
        ranges(stack, (0, 9 * SECTOR, 1), (0, 9 * SECTOR, 1))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(0, 30)), max_size=9),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(0, 30)), max_size=5),
    st.integers(0, 1),
    st.integers(0, 25_000),
    st.integers(0, 9000),
)
def test_any_place(
    lower: list[tuple[int, int, int]],
    upper: list[tuple[int, int, int]],
    number: int,
    place: int,
    length: int,
) -> None:
    """Against a picture of the device, byte by byte."""
    stack = Stack([layer(*_placed(lower)), layer(*_placed(upper))])
    expected = set()
    for extent in stack.extents():
        if extent.layer == number:
            shift = extent.offset - extent.place
            first, stop = (
                max(place, extent.place),
                min(place + length, extent.place + extent.length),
            )
            expected |= set(range(first + shift, stop + shift))
    found = ranges(stack, (number, place, length))
    assert sum(size for _, size in found) == len(expected)
    assert {at for start, size in found for at in range(start, start + size)} == expected


def _placed(found: list[tuple[int, int, int]]) -> list[Row]:
    placed = []
    position = 0
    for gap, length, place in found:
        placed.append((position + gap, length, 8 + place))
        position += gap + length
    return placed
