"""ZFiles made by hand."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import google_crc32c
import lz4.block

RECORD = "<8s16sIIQQQQIIIBBBBIIB7x"
LZ4, ZSTD = 1, 2


def raw_crc(seed: int, data: bytes) -> int:
    value: int = google_crc32c.extend(seed ^ 0xFFFFFFFF, data)
    return value ^ 0xFFFFFFFF


def slot(
    flags: int,
    *,
    table: tuple[int, int, int] = (0, 0, 0),
    table_crc: int = 0,
    block_size: int = 4096,
    algorithm: int = LZ4,
    crc: int = 1,
    dictionary: int = 0,
    digest: int | None = None,
) -> bytes:
    """Return a header or trailer; `table` is the jump table's byte, its entries, and the size."""
    size = struct.calcsize(RECORD)

    def packed(digest: int) -> bytes:
        fields = (b"ZFile\0\1\0", b"tuji.yyf@Alibaba", size, digest, flags, *table, table_crc, 0)
        last = (block_size, algorithm, 0, 0, 0, 0, dictionary, crc)
        return struct.pack(RECORD, *fields, *last).ljust(512, b"\0")

    return packed(raw_crc(0, packed(0)) if digest is None else digest)


def make_zfile(
    blocks: Sequence[bytes],
    size: int,
    *,
    flags: tuple[int, int] = (0x1B, 0x16),
    crc: bool = True,
    block_size: int = 4096,
    algorithm: int = LZ4,
) -> bytes:
    """Return a ZFile of blocks that are compressed already."""
    stored = [block + struct.pack("<I", raw_crc(100007, block)) * crc for block in blocks]
    table = struct.pack(f"<{len(stored)}I", *map(len, stored))
    body = b"".join(stored)
    rest: dict[str, Any] = {"block_size": block_size, "algorithm": algorithm, "crc": int(crc)}
    said: dict[str, Any] = {
        "table": (512 + len(body), len(stored), size),
        "table_crc": raw_crc(0, table),
        **rest,
    }
    header = slot(flags[0], **(said if flags[0] & 8 else rest))
    return header + body + table + slot(flags[1], **said)


def lz4_blocks(data: bytes, size: int = 4096) -> list[bytes]:
    pieces = (data[at : at + size] for at in range(0, len(data), size))
    return [lz4.block.compress(piece, store_size=False) for piece in pieces]
