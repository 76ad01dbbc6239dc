"""The records of a ZFile.

All numbers are little-endian. Where things lie:

    byte 0              the header, 96 bytes in a slot of 512
    byte 512            blocks, one behind the other: what is compressed, then 4 bytes of CRC-32C
    index_offset        the jump table: for each block 4 bytes, its length with the CRC
    last 512 bytes      the trailer, laid out like the header
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from lamina.errors import FormatError
from lamina.formats.crc32c import crc32c

FORMAT = "ZFile"
SLOT = 512
"""Bytes of the header, and of the trailer."""
MAGIC = b"ZFile\0\1\0"
MAGIC_2 = b"tuji.yyf@Alibaba"
RECORD = struct.Struct("<8s16sIIQQQQI4xIBBBx4xIB7x")
assert RECORD.size == 96
LENGTH = struct.Struct("<I")
CRC = struct.Struct("<I")
CRC_SEED = 100007
"""Of blocks; that of the header and of the jump table is 0."""
MIN_BLOCK = 4096
MAX_BLOCK = 65536
MAX_STORED = 65536
"""Bytes of a block as it is stored, with its CRC: overlaybd reads none that is longer."""
MAX_BLOCKS = 1 << 26
"""Each costs 4.5 bytes of memory: at most 288 MiB."""

_DIGEST_FIELD = slice(28, 32)
_KNOWN_FLAGS = 0x3F
"""Old writers left the others as they happened to be in memory."""


class Flags(enum.IntFlag):
    """What holds for a header or trailer."""

    HEADER = 0x1
    """Not set in a trailer."""
    DATA = 0x2
    SEALED = 0x4
    OVERWRITTEN = 0x8
    """The header has what the trailer has, which need not be read."""
    DIGEST = 0x10
    """`digest` and `index_crc` count; without it they are anything."""
    INDEX_COMPRESSED = 0x20


class Algorithm(enum.IntEnum):
    """How blocks are compressed."""

    LZ4 = 1
    """An LZ4 block, with neither frame nor length."""
    ZSTD = 2
    """A zstd frame."""


class Record(NamedTuple):
    """A header or trailer.

    Attributes:
        magic: MAGIC.
        magic_2: MAGIC_2.
        record_size: bytes of it.
        digest: CRC-32C of the slot, with zeros for the digest.
        flags: `Flags`.
        index_offset: byte of the jump table.
        blocks: entries of that.
        size: bytes, uncompressed.
        index_crc: CRC-32C of the jump table.
        block_size: bytes of a block but for the last, uncompressed.
        algorithm: `Algorithm`.
        level: says nothing.
        use_dictionary: 0.
        dictionary_size: 0.
        has_crc: 1 if a CRC follows each block.
    """

    magic: bytes
    magic_2: bytes
    record_size: int
    digest: int
    flags: int
    index_offset: int
    blocks: int
    size: int
    index_crc: int
    block_size: int
    algorithm: int
    level: int
    use_dictionary: int
    dictionary_size: int
    has_crc: int


def damaged(offset: int, expected: str, got: object) -> FormatError:
    """Return the error for a ZFile that cannot be read at a byte of it."""
    return FormatError(FORMAT, offset, expected=expected, got=str(got)[:200])


def is_zfile(head: bytes) -> bool:
    """Tell from the first 24 bytes."""
    return head[:24] == MAGIC + MAGIC_2


def parse_record(slot: bytes, at: int) -> Record:
    """Return the record of a slot of SLOT bytes, with no flags but the known ones.

    Args:
        slot: a header or trailer.
        at: its byte in the file, for the error.

    Raises:
        FormatError: it is none, is damaged, or says what is not supported.
    """
    record = Record._make(RECORD.unpack_from(slot))
    if (record.magic, record.magic_2) != (MAGIC, MAGIC_2):
        raise damaged(at, "the magic of a ZFile", slot[:24].hex())
    if record.record_size != RECORD.size:
        raise damaged(at + 24, f"a record of {RECORD.size} bytes", record.record_size)
    record = record._replace(flags=record.flags & _KNOWN_FLAGS)
    if record.flags & Flags.DIGEST and record.digest != digest_of(slot):
        raise damaged(at + 28, f"the digest {digest_of(slot):#010x}", f"{record.digest:#010x}")
    if record.flags & Flags.INDEX_COMPRESSED:
        raise damaged(at + 32, "a jump table that is not compressed", f"{record.flags:#x}")
    if not _is_block_size(record.block_size):
        expected = f"a power of two from {MIN_BLOCK} to {MAX_BLOCK} as block size"
        raise damaged(at + 72, expected, record.block_size)
    if record.algorithm not in tuple(Algorithm):
        raise damaged(at + 76, "LZ4 (1) or zstd (2)", record.algorithm)
    if record.use_dictionary or record.dictionary_size:
        raise damaged(at + 78, "no dictionary", f"{record.dictionary_size} bytes of one")
    if record.has_crc > 1:
        raise damaged(at + 88, "0 or 1", record.has_crc)
    return record


def pack_record(record: Record) -> bytes:
    """Return a slot, with its digest if the flags say that there is one."""
    slot = RECORD.pack(*record).ljust(SLOT, b"\0")
    if record.flags & Flags.DIGEST:
        slot = RECORD.pack(*record._replace(digest=digest_of(slot))).ljust(SLOT, b"\0")
    return slot


def digest_of(slot: bytes) -> int:
    """Return the digest of a slot, whatever it has there."""
    return crc32c(0, slot[: _DIGEST_FIELD.start] + bytes(4) + slot[_DIGEST_FIELD.stop :])


def _is_block_size(size: int) -> bool:
    return MIN_BLOCK <= size <= MAX_BLOCK and not size & (size - 1)
