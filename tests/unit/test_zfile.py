"""ZFiles: those made by hand are read, those written read alike, and what is damaged is refused."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.errors import FormatError, OutOfRange
from lamina.formats.zfile import reader
from lamina.formats.zfile.blocks import decompress_lz4_blocks
from lamina.formats.zfile.reader import read_zfile
from tests.erofs import Bytes
from tests.rafs import noise
from tests.zfile import LZ4, ZSTD, lz4_blocks, make_zfile, slot

DATA = b"words " * 2000 + noise(9000)


def read_all(raw: bytes) -> bytes:
    found = read_zfile(Bytes(raw))
    return found.read_at(0, found.size)


@pytest.mark.parametrize("flags", [(0x1B, 0x16), (0x13, 0x16), (0x03, 0x06)])
@pytest.mark.parametrize("crc", [True, False])
def test_reads(flags: tuple[int, int], crc: bool) -> None:
    raw = make_zfile(lz4_blocks(DATA), len(DATA), flags=flags, crc=crc)
    assert read_all(raw) == DATA


def test_reads_any_range() -> None:
    found = read_zfile(Bytes(make_zfile(lz4_blocks(DATA * 9), len(DATA) * 9)))
    for offset, length in ((0, 1), (4095, 2), (4096, 4096), (100_000, 60_001), (len(DATA) * 9, 0)):
        assert found.read_at(offset, length) == (DATA * 9)[offset : offset + length]
    with pytest.raises(OutOfRange):
        found.read_at(found.size, 1)
    assert found.blocks == 47
    start, length = found.stored(20, 23)
    assert (
        found.decode(20, 23, found.stored_source.read_at(start, length)) == (DATA * 9)[81920:94208]
    )


def test_what_old_writers_left_in_memory_is_passed_over() -> None:
    """The base layer of 2021 has neither digests nor cleared fields."""
    raw = bytearray(make_zfile(lz4_blocks(DATA), len(DATA), flags=(0x43, 0x46)))
    for at in (0, len(raw) - 512):
        raw[at + 28 : at + 32] = noise(4)
        raw[at + 36 : at + 40] = noise(4)
        raw[at + 64 : at + 72] = noise(8)
        raw[at + 89 : at + 512] = noise(423)
    raw[40:48] = noise(8)
    assert read_all(bytes(raw)) == DATA


@pytest.mark.parametrize("flags", [(0x1B, 0x16), (0x13, 0x16)])
def test_cut_off(flags: tuple[int, int]) -> None:
    raw = make_zfile(lz4_blocks(b"ab" * 3000), 6000, flags=flags)
    for length in range(len(raw)):
        with pytest.raises(FormatError):
            read_zfile(Bytes(raw[:length]))


@pytest.mark.parametrize("flags", [(0x1B, 0x16), (0x13, 0x16)])
def test_each_bit_that_counts_is_verified(flags: tuple[int, int]) -> None:
    raw = make_zfile(lz4_blocks(b"ab" * 3000), 6000, flags=flags)
    end = len(raw) - (512 if flags[0] & 8 else 0)
    for at in range(end):
        changed = bytearray(raw)
        changed[at] ^= 1 << at % 8
        with pytest.raises(FormatError):
            read_all(bytes(changed))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (slot(0x1B, block_size=4097), "power of two"),
        (slot(0x1B, block_size=2048), "power of two"),
        (slot(0x1B, block_size=1 << 17), "power of two"),
        (slot(0x1B, algorithm=0), "LZ4"),
        (slot(0x1B, dictionary=1), "dictionary"),
        (slot(0x3B), "not compressed"),
        (slot(0x1B, crc=2), "0 or 1"),
        (slot(0x1B, table=(512, 1, 4097)), "2 blocks"),
        (slot(0x1B, table=(511, 0, 0)), "jump table"),
        (slot(0x1B, table=(1 << 63, 0, 0)), "jump table"),
        (slot(0x1B, table=(512, 1 << 61, 1 << 63)), "jump table"),
        (slot(0x1A), "of a header"),
        (slot(0x11), "of a data file"),
        (slot(0x1B, digest=1), "digest"),
    ],
)
def test_headers_refused(header: bytes, expected: str) -> None:
    with pytest.raises(FormatError, match=expected):
        read_zfile(Bytes(header + bytes(4096)))


@pytest.mark.parametrize("trailer", [slot(0x13), slot(0x12), slot(0x16, block_size=8192)])
def test_trailers_refused(trailer: bytes) -> None:
    with pytest.raises(FormatError):
        read_zfile(Bytes(slot(0x13) + trailer))


def test_no_more_blocks_than_memory_is_meant_for(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = make_zfile(lz4_blocks(DATA), len(DATA))
    monkeypatch.setattr(reader, "MAX_BLOCKS", 5)
    with pytest.raises(FormatError, match="at most 5 blocks, got 6"):
        read_zfile(Bytes(raw))


@pytest.mark.parametrize("length", [0, 4, 8193, 6000])
def test_lengths_refused(length: int) -> None:
    """None, no more than a CRC, more than any compressor makes, more than there is."""
    table = struct.pack("<I", length)
    header = slot(0x0B, table=(600, 1, 4096))
    with pytest.raises(FormatError):
        read_zfile(Bytes(header + bytes(88) + table + bytes(512)))


@pytest.mark.parametrize(
    ("algorithm", "block"),
    [
        (LZ4, lz4_blocks(bytes(4095))[0]),
        (LZ4, lz4_blocks(bytes(4097), 4097)[0]),
        (LZ4, b"\xff" * 20),
        (ZSTD, b"\xff" * 20),
    ],
)
def test_blocks_of_another_size_are_refused(algorithm: int, block: bytes) -> None:
    with pytest.raises(FormatError, match="a block of 4096 bytes"):
        read_all(make_zfile([block], 4096, algorithm=algorithm))


@pytest.mark.parametrize("crc", [True, False])
@pytest.mark.parametrize("size", [4095, 4097])
def test_a_block_of_another_size_among_others_is_named(size: int, crc: bool) -> None:
    blocks = lz4_blocks(DATA)
    blocks[2] = lz4_blocks(bytes(size), size)[0]
    with pytest.raises(FormatError, match="a block of 4096 bytes") as caught:
        read_all(make_zfile(blocks, len(DATA), crc=crc))
    assert caught.value.offset == 512 + sum(len(block) + 4 * crc for block in blocks[:2])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(st.just(4096), st.integers(0, 9000), st.just(65536), st.just(70000)),
        min_size=2,
        max_size=9,
    ),
    st.integers(0, 4095),
)
def test_blocks_of_other_sizes_are_refused_together(sizes: list[int], change: int) -> None:
    sizes += [change]
    pieces = [b"word " * (size // 5) + bytes(size % 5) for size in sizes]
    blocks = [lz4_blocks(piece, 1 << 20)[0] if piece else b"\0" for piece in pieces]
    for size in (4096 * len(blocks), 4096 * len(blocks) - 1):
        with pytest.raises(FormatError, match="a block of"):
            read_all(make_zfile(blocks, size))


@pytest.mark.parametrize("change", [1, 4095, 4096])
def test_blocks_that_are_right_only_together_are_refused(change: int) -> None:
    pieces = [(b"word " * 2000)[:size] for size in (4096 - change, 4096 + change, 4096)]
    blocks = [lz4_blocks(piece, 1 << 20)[0] if piece else b"\0" for piece in pieces]
    for first in range(3):
        order = blocks[first:] + blocks[:first]
        with pytest.raises(FormatError, match="a block of 4096 bytes"):
            read_all(make_zfile(order, 3 * 4096))


def test_no_more_is_made_than_is_wanted() -> None:
    large = lz4_blocks(bytes(65536), 65536)[0]
    tracemalloc.start()
    try:
        assert decompress_lz4_blocks([large] * 1000, 4096, 4096 * 1000) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * 4096 * 1000  # of 64 MiB; lz4 copies what it returns


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=4))
def test_changes_without_checksums(changes: list[tuple[int, int]]) -> None:
    raw = bytearray(make_zfile(lz4_blocks(b"ab" * 9000), 18000, flags=(0x03, 0x06), crc=False))
    for at, value in changes:
        raw[at % len(raw)] = value
    try:
        read_all(bytes(raw))
    except FormatError:
        pass
