"""Indexes of gzip blobs: made with zlib, and by hand."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence

from lamina.formats.crc32c import crc32c
from lamina.formats.deflate import Point
from lamina.formats.gzip_index import write_gzip_index
from lamina.linux.libz import GzipBlocks

HEADER = "<8sBBBbBiiiqqqq256sqq"
ENTRY = "<qqqBI"

Entry = tuple[int, int, int, int, int]
"""Byte of the output, of the blob, of the window, bits, and bytes of the window."""


def points_of(blob: bytes, spacing: int = 1 << 16) -> list[Point]:
    blocks = GzipBlocks(io.BytesIO(blob).read, spacing=spacing)
    for _ in blocks:
        pass
    return [Point._make(point) for point in blocks.points]


def make_index(blob: bytes, size: int, spacing: int = 1 << 16) -> bytes:
    """Return the project's own index of a blob with `size` bytes of output."""
    out = io.BytesIO()
    write_gzip_index(out, points_of(blob, spacing), size=size, gzip_size=len(blob), spacing=spacing)
    return out.getvalue()


def pack_index(
    entries: Sequence[Entry],
    windows: bytes,
    fields: Mapping[str, int | bytes] | None = None,
    *,
    compress: bool = True,
) -> bytes:
    """Return an index whose header has other fields where they are given."""
    area = b"".join(struct.pack(ENTRY, *entry) for entry in entries)
    area = zlib.compress(area) if compress else area
    start = 333 + len(windows)
    told: dict[str, int | bytes] = {
        "magic": b"ddgzidx\0",
        "major": 1,
        "minor": 0,
        "compressed": int(compress),
        "level": 6,
        "flag": 0,
        "spacing": 1 << 20,
        "window": 1 << 15,
        "entry_size": 29,
        "entries": len(entries),
        "gzip_size": 1000,
        "file_size": start + len(area),
        "size": 5000,
        "reserved": b"",
        "index_start": start,
        "index_size": len(area),
    }
    told |= fields or {}
    assert len(told) == 16
    head = struct.pack(HEADER, *told.values())
    return head + struct.pack("<I", crc32c(0, head)) + windows + area
