from __future__ import annotations

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.formats.crc32c import crc32c
from lamina.formats.erofs import layout
from lamina.formats.erofs.layout import (
    SUPERBLOCK,
    Superblock,
    decode_rdev,
    encode_rdev,
    inode_format,
    superblock_checksum,
    xattr_body_size,
)


def test_checksum_is_that_of_the_rest_after_the_kernels_seed() -> None:
    block = bytearray(os.urandom(4096))
    SUPERBLOCK.pack_into(block, 1024, *SUPERBLOCK.unpack_from(block, 1024))
    block[1024:1028] = b"\xe2\xe1\xf5\xe0"
    assert superblock_checksum(bytes(block)) == crc32c(0x5045B54A, bytes(block[1032:]))


@pytest.mark.parametrize(
    ("record", "struct"),
    [
        (layout.Superblock, layout.SUPERBLOCK),
        (layout.DeviceSlot, layout.DEVICE_SLOT),
        (layout.CompactInode, layout.COMPACT_INODE),
        (layout.ExtendedInode, layout.EXTENDED_INODE),
        (layout.ChunkIndex, layout.CHUNK_INDEX),
        (layout.Dirent, layout.DIRENT),
        (layout.XattrHeader, layout.XATTR_HEADER),
        (layout.XattrEntry, layout.XATTR_ENTRY),
    ],
)
def test_records_have_a_name_for_each_field(record: type, struct: object) -> None:
    size = struct.size  # type: ignore[attr-defined]
    values = struct.unpack(bytes(size))  # type: ignore[attr-defined]
    assert len(record._fields) == len(values)  # type: ignore[attr-defined]


def test_superblock_fields_are_where_the_kernel_has_them() -> None:
    raw = bytearray(128)
    for offset, value in ((14, b"\1\0"), (24, b"\2"), (40, b"\3"), (44, b"\4"), (80, b"\x0c")):
        raw[offset : offset + len(value)] = value
    raw[86:90] = b"\5\0\x09\0"
    raw[90:108] = bytes([6, 7]) + bytes(16)
    raw[108] = 8
    superblock = Superblock._make(SUPERBLOCK.unpack(raw))
    assert superblock.rootnid == 1
    assert superblock.epoch == 2
    assert (superblock.meta_blkaddr, superblock.xattr_blkaddr) == (3, 4)
    assert superblock.feature_incompat == 12
    assert (superblock.extra_devices, superblock.devt_slotoff) == (5, 9)
    assert (superblock.dirblkbits, superblock.xattr_prefix_count) == (6, 7)
    assert superblock.build_time == 8


@given(st.integers(0, 4095), st.integers(0, (1 << 20) - 1))
def test_device_numbers(major: int, minor: int) -> None:
    device = os.makedev(major, minor)
    assert decode_rdev(encode_rdev(device)) == device


def test_device_numbers_as_the_kernel_writes_them() -> None:
    assert encode_rdev(os.makedev(8, 1)) == 0x801
    assert encode_rdev(os.makedev(259, 70_000)) == 0x11110370


def test_formats() -> None:
    assert inode_format(1, layout.EROFS_INODE_CHUNK_BASED) == 9
    assert inode_format(0, layout.EROFS_INODE_FLAT_INLINE) == 4
    assert [xattr_body_size(n) for n in (0, 1, 2)] == [0, 12, 16]
    assert set(layout.FILE_TYPES) == {
        stat.S_IFMT(mode)
        for mode in (0o010000, 0o020000, 0o040000, 0o060000, 0o100000, 0o120000, 0o140000)
    }
