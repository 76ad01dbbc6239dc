"""LSMT layers made by hand."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence

from lamina.formats.lsmt.mappings import Mappings

RECORD = "<8s16sIIQQQ37s37sHBB256s"
MAGICS = (b"LSMT\0\1\2\0", bytes.fromhex("657e63d29444084ca2d2c8ec4fcfae8a"))
NULL = b"00000000-0000-0000-0000-000000000000"
UUID = b"01BB4FCE-3EB1-B56B-05AD-F99504DAFD31"
PADDING = struct.pack("<QQ", (1 << 50) - 1, 0)
ZERO = 1 << 55

Row = tuple[int, int, int]
"""First sector of the device, sectors, and the second word."""


def record(
    flags: int,
    index: tuple[int, int] = (0, 0),
    size: int = 1 << 20,
    *,
    uuid: bytes = NULL,
    parent: bytes = NULL,
    version: tuple[int, int] = (1, 1),
    message: bytes = b"",
    record_size: int = 390,
) -> bytes:
    """Return a header or trailer; `index` is its byte and its entries."""
    names = (uuid, parent, 0, *version, message)
    packed = struct.pack(RECORD, *MAGICS, record_size, flags, *index, size, *names)
    return packed.ljust(4096, b"\0")


def rows(*found: Row) -> bytes:
    return b"".join(struct.pack("<QQ", length << 50 | at, place) for at, length, place in found)


def make_layer(data: bytes, index: bytes, size: int = 1 << 20, flags: int = 7) -> bytes:
    """Return a sealed layer whose data begins at sector 8."""
    told = (4096 + len(data), len(index) // 16)
    trailer = record(flags & ~1 | 4, told, size, uuid=UUID)
    return record(flags, size=size, uuid=UUID) + data + index + trailer


def mapped(found: Sequence[Row]) -> Mappings:
    starts, lengths, places = (array(code, column) for code, column in _columns(found))
    return Mappings(starts, lengths, places)


def _columns(found: Sequence[Row]) -> list[tuple[str, list[int]]]:
    return [(code, [row[at] for row in found]) for at, code in enumerate("QHQ")]


def listed(mappings: Mappings) -> list[Row]:
    return list(zip(mappings.starts, mappings.lengths, mappings.places, strict=True))
