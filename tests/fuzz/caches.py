"""Files of lazy layers' caches, and records of what was read."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from collections.abc import Iterator

from lamina.errors import FormatError
from lamina.images.recording import RecordedFile, parse_record, write_record
from lamina.lazy.table import Header, UnitTable
from lamina.lazy.unit import BLOCK, MAX_UNIT_BYTES, Check, Codec, Piece, Unit
from lamina.lazy.unit_map import HEADER_BYTES, Identity, State, UnitMap, pack_header
from tests.fuzz.target import Target
from tests.lazy_layers import padded

_UNITS = 8
_IDENTITY = Identity(_UNITS, 7, bytes(range(32)), "0c1f7f2e-6b0b-4e5c-9d6b-000000000000")


def _tables() -> Iterator[bytes]:
    """Yield tables without their sums."""
    two = tuple(Piece(512 * n, 5, BLOCK + 5 * n, Check.SHA256, bytes(32)) for n in range(2))
    units = (
        Unit(0, 10, 0, 7, Codec.GZIP, (Piece(0, 7, 0, Check.NONE, bytes(32)),)),
        Unit(100, 50, BLOCK, 10, Codec.ZSTD, two),
    )
    for some in (units, ()):
        out = io.BytesIO()
        UnitTable.write(out, Header(300, 4 * BLOCK), some)
        yield out.getvalue()[:-32]


def _table(data: bytes) -> None:
    try:
        table = UnitTable(data + hashlib.sha256(data).digest())
    except FormatError:
        return
    for number in range(len(table)):
        each = table.unit(number)
        start, stop = table.source_range(number)
        assert 0 <= start < stop <= table.source_size
        assert each.cache_offset + padded(each.cache_length) <= table.cache_size
        assert number in table.find(each.cache_offset, each.cache_offset + 1)
        for piece in each.pieces:
            assert each.cache_offset <= piece.cache_offset
            assert piece.cache_offset + piece.length <= each.cache_offset + each.cache_length
            assert piece.inner_offset + piece.length <= MAX_UNIT_BYTES


def _maps() -> Iterator[bytes]:
    states = bytes(number % 4 for number in range(_UNITS))
    yield pack_header(_IDENTITY) + states
    yield pack_header(_IDENTITY._replace(boot="another")) + states
    yield pack_header(_IDENTITY._replace(inode=8)) + states
    yield b""


def _map(data: bytes) -> None:
    if len(data) >= HEADER_BYTES:
        checksum = struct.pack("<I", zlib.crc32(data[: HEADER_BYTES - 4]))
        data = data[: HEADER_BYTES - 4] + checksum + data[HEADER_BYTES:]
    fd = os.memfd_create("map", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        first = UnitMap(fd, _IDENTITY)
        states = [first.state(number) for number in range(_UNITS)]
        again = UnitMap(fd, _IDENTITY)
        assert [again.state(number) for number in range(_UNITS)] == states
        assert not again.reset_reason
        if b"another" in data or first.reset_reason:
            assert State.LOCAL not in states
    finally:
        os.close(fd)


def _records() -> Iterator[bytes]:
    yield write_record(
        [
            RecordedFile(b"usr/bin/env"),
            RecordedFile("ü/\udc80".encode("utf-8", "surrogateescape"), "sha256:" + "0" * 64, 3),
        ]
    )
    yield b"\n\n"


def _record(data: bytes) -> None:
    try:
        files = parse_record(data)
    except FormatError:
        return
    assert parse_record(write_record(files)) == files


TARGETS = {
    "table": Target(_tables, _table),
    "map": Target(_maps, _map),
    "record": Target(_records, _record),
}
