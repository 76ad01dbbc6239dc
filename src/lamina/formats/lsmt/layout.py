"""The records of an LSMT layer.

All numbers are little-endian; a sector has 512 bytes. Where things lie:

    byte 0              the header, 390 bytes in a slot of 4096
    byte 4096           data, of any number of sectors
    index_offset        the index: 16 bytes for each mapping
    last 4096 bytes     the trailer, laid out like the header

A mapping is two words:

    bits 0 to 49        first sector of the device      bits 0 to 54    first sector in the file
    bits 50 to 63       how many sectors                bit 55          1: they are zeros
                                                        bits 56 to 63   number of the layer
"""

from __future__ import annotations

import enum
import re
import struct
from typing import NamedTuple
from uuid import UUID

from lamina.errors import FormatError

FORMAT = "LSMT"
SECTOR = 512
SLOT = 4096
"""Bytes of the header, and of the trailer."""
MAGIC = b"LSMT\0\1\2\0"
MAGIC_2 = bytes.fromhex("657e63d29444084ca2d2c8ec4fcfae8a")
RECORD = struct.Struct("<8s16sIIQQQ37s37sHBB256s")
assert RECORD.size == 390
VERSION = (1, 1)
NO_UUID = UUID(int=0)

MAPPING_SIZE = 16
OFFSET_BITS = 50
MAX_OFFSET = (1 << OFFSET_BITS) - 1
MAX_LENGTH = (1 << 14) - 1
"""Sectors of a mapping."""
PLACE_BITS = 55
MAX_PLACE = (1 << PLACE_BITS) - 1
ZEROED = 1 << PLACE_BITS
TAG_SHIFT = 56
UNTAGGED = (1 << TAG_SHIFT) - 1
PADDING = MAX_OFFSET
"""First word of an entry that maps nothing; the second is 0."""
FIRST_SECTOR = SLOT // SECTOR
"""Of data in the file."""

MAX_LAYERS = 255
MAX_MAPPINGS = 1_000_000
"""Of one layer, padding included; overlaybd reads no more."""
MAX_MERGED = 1 << 23
"""Of all layers of a device; each costs 18 bytes of memory, and as much again once merged."""
MAX_LOGGED = 1 << 22
"""Of the log of a writable layer."""
MAX_DEVICE = 1 << 59
"""Bytes: what mappings can tell."""
MAX_MESSAGE = 256


class Flags(enum.IntFlag):
    """What holds for a header or trailer."""

    HEADER = 0x1
    """Not set in a trailer."""
    DATA = 0x2
    """Not set in the log of a writable layer."""
    SEALED = 0x4
    SPARSE = 0x10
    """Data of a writable layer that lies where it does on the device."""


class Record(NamedTuple):
    """A header or trailer.

    Attributes:
        magic: MAGIC.
        magic_2: MAGIC_2.
        record_size: bytes of it.
        flags: `Flags`, and others that say nothing.
        index_offset: byte of the index.
        mappings: entries of that, with padding.
        virtual_size: bytes of the device; 0 in upper layers that leave it to lower ones.
        uuid: 36 characters and a NUL.
        parent_uuid: as much.
        reserved: anything.
        version: 1.
        sub_version: 1.
        message: of whoever committed it; need not end with a NUL.
    """

    magic: bytes
    magic_2: bytes
    record_size: int
    flags: int
    index_offset: int
    mappings: int
    virtual_size: int
    uuid: bytes
    parent_uuid: bytes
    reserved: int
    version: int
    sub_version: int
    message: bytes


class About(NamedTuple):
    """What a layer says of itself.

    Attributes:
        virtual_size: bytes of the device; 0 leaves it to lower layers.
        uuid: name of the layer; the null one for none.
        parent_uuid: that of the layer below; nobody verifies it.
        message: at most MAX_MESSAGE bytes.
    """

    virtual_size: int = 0
    uuid: UUID = NO_UUID
    parent_uuid: UUID = NO_UUID
    message: bytes = b""


def damaged(offset: int, expected: str, got: object) -> FormatError:
    """Return the error for a layer that cannot be read at a byte of it."""
    return FormatError(FORMAT, offset, expected=expected, got=str(got)[:200])


def is_lsmt(head: bytes) -> bool:
    """Tell from the first 24 bytes."""
    return head[:24] == MAGIC + MAGIC_2


def parse_record(slot: bytes, at: int, flags: Flags) -> Record:
    """Return the record of a slot.

    Args:
        slot: a header or trailer.
        at: its byte in the file, for the error.
        flags: those of HEADER and DATA that it must have; a trailer must be SEALED besides.

    Raises:
        FormatError: it is none, or says what is not supported.
    """
    record = Record._make(RECORD.unpack_from(slot))
    if (record.magic, record.magic_2) != (MAGIC, MAGIC_2):
        raise damaged(at, "the magic of an LSMT layer", slot[:24].hex())
    if record.record_size != RECORD.size:
        raise damaged(at + 24, f"a record of {RECORD.size} bytes", record.record_size)
    looked_at = Flags.HEADER | Flags.DATA
    if not flags & Flags.HEADER:
        looked_at |= Flags.SEALED
    if record.flags & looked_at != flags:
        raise damaged(at + 28, f"the flags {int(flags):#x}", f"{record.flags:#x}")
    if record.virtual_size > MAX_DEVICE or record.virtual_size % SECTOR:
        expected = f"sectors of a device of at most {MAX_DEVICE} bytes"
        raise damaged(at + 48, expected, record.virtual_size)
    if (record.version, record.sub_version) != VERSION:
        raise damaged(at + 132, "version 1.1", f"{record.version}.{record.sub_version}")
    return record


def about(record: Record, at: int) -> About:
    """Return what a record says of the layer; `at` is its byte in the file.

    Raises:
        FormatError: a UUID is none.
    """
    return About(
        record.virtual_size,
        _parse_uuid(record.uuid, at + 56),
        _parse_uuid(record.parent_uuid, at + 93),
        record.message.rstrip(b"\0"),
    )


def pack_record(told: About, flags: Flags, index_offset: int = 0, mappings: int = 0) -> bytes:
    """Return a slot."""
    record = Record(
        magic=MAGIC,
        magic_2=MAGIC_2,
        record_size=RECORD.size,
        flags=flags,
        index_offset=index_offset,
        mappings=mappings,
        virtual_size=told.virtual_size,
        uuid=str(told.uuid).upper().encode(),
        parent_uuid=str(told.parent_uuid).upper().encode(),
        reserved=0,
        version=VERSION[0],
        sub_version=VERSION[1],
        message=told.message,
    )
    return RECORD.pack(*record).ljust(SLOT, b"\0")


_UUID = re.compile(rb"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def _parse_uuid(raw: bytes, at: int) -> UUID:
    text = raw.partition(b"\0")[0]
    if not text:
        return NO_UUID
    if not _UUID.fullmatch(text):
        raise damaged(at, "a UUID", repr(text))
    return UUID(text.decode())
