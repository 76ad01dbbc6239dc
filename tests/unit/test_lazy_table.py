"""The file that says where each byte of a layer's cache comes from."""

from __future__ import annotations

import hashlib
import io
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.errors import FormatError, InvalidArgument
from lamina.lazy.table import Header, UnitTable
from lamina.lazy.unit import BLOCK, MAX_UNIT_BYTES, Check, Codec, Piece, Unit
from tests.lazy_layers import make_layer, padded

DIGEST = bytes(range(32))


def piece(offset: int, length: int, inner: int = 0) -> Piece:
    return Piece(inner, length, offset, Check.SHA256, DIGEST)


def unit(start: int, length: int, source: int = 0, source_length: int = 10) -> Unit:
    return Unit(source, source_length, start, length, Codec.GZIP, (piece(start, length),))


def written(header: Header, *units: Unit) -> bytes:
    out = io.BytesIO()
    UnitTable.write(out, header, units)
    return out.getvalue()


def resealed(data: bytes) -> bytes:
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


def test_golden_bytes() -> None:
    two = (piece(4096, 5, inner=512), piece(8192, 7, inner=1536))
    data = written(
        Header(300, 16384),
        Unit(100, 50, 4096, 4103, Codec.ZSTD, two),
    )
    expected = (
        b"LaminaUT" + struct.pack("<IIQQQQ16x", 1, 64, 300, 16384, 1, 2)
        + struct.pack("<Q", 100)
        + struct.pack("<I4x", 50) + struct.pack("<I4x", 1) + struct.pack("<I4x", 4103)
        + struct.pack("<II", 0, 2) + b"\x02" + bytes(7)
        + struct.pack("<II", 512, 1536) + struct.pack("<II", 5, 7)
        + struct.pack("<QQ", 4096, 8192) + b"\x01\x01" + bytes(6) + DIGEST * 2
    )  # fmt: skip
    assert data == expected + hashlib.sha256(expected).digest()


def test_an_empty_table(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_bytes(written(Header(0, 0)))
    table = UnitTable.open(path)
    assert len(table) == 0
    assert table.find(0, 1 << 40) == range(0)


@given(st.data())
def test_round_trip(data: st.DataObject) -> None:
    lengths = data.draw(
        st.lists(st.lists(st.integers(1, 9000), min_size=1, max_size=3), max_size=6)
    )
    layer = make_layer(lengths, tuple(Codec))
    table = UnitTable(written(layer.header, *layer.units))
    assert (table.source_size, table.cache_size) == layer.header
    assert [table.unit(number) for number in range(len(table))] == layer.units


@given(st.data())
def test_find_is_what_a_search_of_all_units_finds(data: st.DataObject) -> None:
    units, position = [], 0
    gaps = st.integers(0, 2).map(lambda blocks: blocks * BLOCK)
    for gap, length in data.draw(st.lists(st.tuples(gaps, st.integers(1, 20000)), max_size=8)):
        units.append(unit(position + gap, length))
        position += gap + padded(length)
    table = UnitTable(written(Header(10, position), *units))
    start = data.draw(st.integers(0, position))
    stop = data.draw(st.integers(0, position + 1))
    expected = [
        number
        for number, each in enumerate(units)
        if start < stop
        and each.cache_offset < stop
        and start < each.cache_offset + padded(each.cache_length)
    ]
    assert list(table.find(start, stop)) == expected


@pytest.mark.parametrize(
    ("units", "said"),
    [
        ([unit(100, 5)], "multiple"),
        ([unit(0, 5, source=95)], "source"),
        ([unit(0, 8192)], "within the cache"),
        ([unit(0, 5), unit(0, 5)], "in order"),
        ([unit(4096, 5), unit(0, 5)], "in order"),
        ([Unit(0, 10, 0, 5, Codec.GZIP, ())], "piece"),
        ([Unit(0, 10, 0, 5, Codec.GZIP, (piece(0, 4),))], "end with it"),
        ([Unit(0, 10, 0, 5, Codec.GZIP, (piece(0, 3), piece(2, 3)))], "apart"),
        ([Unit(0, 10, 0, 5, Codec.GZIP, (piece(3, 2), piece(0, 5)))], "apart"),
        ([Unit(0, 0, 0, 5, Codec.GZIP, (piece(0, 5),))], "source length"),
        ([Unit(0, 10, 0, 5, Codec.GZIP, (piece(0, 0), piece(0, 5)))], "piece length"),
        ([Unit(0, 10, 0, 5, Codec.GZIP, (piece(0, 5, MAX_UNIT_BYTES),))], "decoded"),
        ([Unit(0, 10, 0, 5, Codec.GZIP, (piece(0, 5)._replace(digest=b"x"),))], "length"),
        ([unit(0, 5, source=-1)], "write a unit table"),
    ],
)
def test_units_that_break_a_rule_are_not_written(units: list[Unit], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        written(Header(100, 8192 if len(units) > 1 else 4096), *units)


def test_a_unit_that_starts_before_its_first_piece_is_fine() -> None:
    only = Unit(0, 10, 0, 105, Codec.GZIP, (piece(100, 5),))
    assert UnitTable(written(Header(100, 4096), only)).unit(0) == only


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    data = written(Header(100, 8192), unit(0, 5), unit(4096, 7))
    path = tmp_path / "table"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(FormatError, match="unit table"):
            UnitTable.open(path)


def test_any_flipped_bit_is_seen() -> None:
    data = written(Header(100, 8192), unit(0, 5), unit(4096, 7))
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        with pytest.raises(FormatError):
            UnitTable(bytes(damaged))


@settings(max_examples=300)
@given(st.integers(8, 400), st.binary(min_size=1, max_size=9))
def test_a_table_that_was_made_to_deceive_stays_within_bounds(at: int, put: bytes) -> None:
    data = written(Header(100, 8192), unit(0, 5), unit(4096, 7))
    at %= len(data) - 32
    forged = resealed((data[:at] + put + data[at + len(put) :])[: len(data)])
    try:
        table = UnitTable(forged)
    except FormatError:
        return
    for number in range(len(table)):
        each = table.unit(number)
        start, stop = table.source_range(number)
        assert 0 <= start < stop <= table.source_size
        assert each.cache_offset + padded(each.cache_length) <= table.cache_size
        for part in each.pieces:
            assert each.cache_offset <= part.cache_offset
            assert part.cache_offset + part.length <= each.cache_offset + each.cache_length
            assert part.inner_offset + part.length <= MAX_UNIT_BYTES


def test_counts_beyond_the_file_allocate_nothing() -> None:
    data = bytearray(written(Header(100, 4096), unit(0, 5)))
    struct.pack_into("<QQ", data, 32, 1 << 26, 1 << 26)
    tracemalloc.start()
    with pytest.raises(FormatError, match="bytes"):
        UnitTable(resealed(bytes(data)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_reading_a_big_table_keeps_nothing_on_the_heap(tmp_path: Path) -> None:
    count = 50_000
    path = tmp_path / "table"
    with path.open("wb") as file:
        units = (unit(number * BLOCK, 100, source=number) for number in range(count))
        UnitTable.write(file, Header(count + 10, count * BLOCK), units)
    tracemalloc.start()
    table = UnitTable.open(path)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 100_000
    assert table.find(17 * BLOCK, 18 * BLOCK) == range(17, 18)
    assert table.unit(count - 1).source_offset == count - 1
