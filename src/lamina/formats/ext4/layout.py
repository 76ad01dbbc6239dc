"""The records of ext4: superblock, group descriptors, inodes, extents, names of directories.

All numbers are little-endian. Blocks have 4096 bytes and inodes 256; groups have 32768 blocks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from lamina.errors import FormatError

FORMAT = "ext4"
BLOCK = 4096
SECTOR = 512
BLOCKS_PER_GROUP = 8 * BLOCK
"""As many as the bits of a block."""

SUPERBLOCK_AT = 1024
"""Byte of the device."""
SUPERBLOCK_SIZE = 1024
MAGIC = 0xEF53
ROOT_INODE = 2
FIRST_INODE = 11
"""Those below are reserved."""

INODE_SIZE = 256
INODES_PER_BLOCK = BLOCK // INODE_SIZE
EXTRA_SIZE = 32
"""Bytes of an inode's fields behind the first 128."""
INLINE_XATTRS = INODE_SIZE - 128 - EXTRA_SIZE
MAX_LINKS = 65000

MAX_NAME = 255
MAX_TARGET = BLOCK - 1
MAX_FAST_TARGET = 59
"""Bytes of a link's target that fit into the inode, with their NUL."""
MAX_FILE_BLOCKS = (1 << 32) - 1

EXT4_INDEX_FL = 0x1000
EXT4_EXTENTS_FL = 0x80000

EXT4_FEATURE_COMPAT_EXT_ATTR = 0x8
EXT4_FEATURE_COMPAT_DIR_INDEX = 0x20
EXT4_FEATURE_COMPAT_SPARSE_SUPER2 = 0x200
EXT4_FEATURE_INCOMPAT_FILETYPE = 0x2
EXT4_FEATURE_INCOMPAT_EXTENTS = 0x40
EXT4_FEATURE_INCOMPAT_FLEX_BG = 0x200
EXT4_FEATURE_RO_COMPAT_SPARSE_SUPER = 0x1
EXT4_FEATURE_RO_COMPAT_LARGE_FILE = 0x2
EXT4_FEATURE_RO_COMPAT_HUGE_FILE = 0x8
EXT4_FEATURE_RO_COMPAT_GDT_CSUM = 0x10
EXT4_FEATURE_RO_COMPAT_DIR_NLINK = 0x20
EXT4_FEATURE_RO_COMPAT_EXTRA_ISIZE = 0x40

EXT4_BG_INODE_UNINIT = 0x1
"""Neither the inode bitmap nor the inode table of a group is written."""
EXT4_BG_BLOCK_UNINIT = 0x2
"""The block bitmap of a group is not written."""
EXT4_BG_INODE_ZEROED = 0x4
"""The kernel need not write zeros to the inode table: a device without data has them."""

_SUPERBLOCK = struct.Struct("<13I6H4I2H I2H 3I16s16s64sI2BH16s3I16s2BH3I68s3I2HI2HQI4BQ204sII428s")
assert _SUPERBLOCK.size == SUPERBLOCK_SIZE
DESCRIPTOR = struct.Struct("<3I4HI4H")
assert DESCRIPTOR.size == 32
DESCRIPTORS_PER_BLOCK = BLOCK // DESCRIPTOR.size
INODE = struct.Struct("<2H5I2H3I60s4I6H2H7I96s")
assert INODE.size == INODE_SIZE
DIRENT = struct.Struct("<IHBB")
"""Inode, bytes up to the next entry, bytes of the name, type."""


class Superblock(NamedTuple):
    """What differs between the superblocks that are written.

    Attributes:
        inodes: of all groups.
        blocks: of the device, below 2^32.
        free_blocks: that nothing has.
        free_inodes: that nothing has.
        inodes_per_group: a multiple of 16.
        log_groups_per_flex: groups whose bitmaps and inode tables lie together, as a power of 2.
        uuid: 16 bytes.
        hash_seed: 16 bytes, of the hashes of names.
    """

    inodes: int
    blocks: int
    free_blocks: int
    free_inodes: int
    inodes_per_group: int
    log_groups_per_flex: int
    uuid: bytes
    hash_seed: bytes

    def pack(self) -> bytes:
        """Return the record. All times are 0, and it was never mounted."""
        return _SUPERBLOCK.pack(
            self.inodes,
            self.blocks,
            0,  # s_r_blocks_count
            self.free_blocks,
            self.free_inodes,
            0,  # s_first_data_block
            2,  # s_log_block_size
            2,  # s_log_cluster_size
            BLOCKS_PER_GROUP,
            BLOCKS_PER_GROUP,  # s_clusters_per_group
            self.inodes_per_group,
            0,  # s_mtime
            0,  # s_wtime
            0,  # s_mnt_count
            0xFFFF,  # s_max_mnt_count: no check after so many mounts
            MAGIC,
            1,  # s_state: clean
            1,  # s_errors: continue
            0,  # s_minor_rev_level
            0,  # s_lastcheck
            0,  # s_checkinterval
            0,  # s_creator_os: Linux
            1,  # s_rev_level
            0,  # s_def_resuid
            0,  # s_def_resgid
            FIRST_INODE,
            INODE_SIZE,
            0,  # s_block_group_nr
            COMPAT,
            INCOMPAT,
            RO_COMPAT,
            self.uuid,
            bytes(16),  # s_volume_name
            bytes(64),  # s_last_mounted
            0,  # s_algorithm_usage_bitmap
            0,  # s_prealloc_blocks
            0,  # s_prealloc_dir_blocks
            0,  # s_reserved_gdt_blocks
            bytes(16),  # s_journal_uuid
            0,  # s_journal_inum
            0,  # s_journal_dev
            0,  # s_last_orphan
            self.hash_seed,
            1,  # s_def_hash_version: half MD4
            0,  # s_jnl_backup_type
            0,  # s_desc_size
            0xC,  # s_default_mount_opts: user_xattr, acl
            0,  # s_first_meta_bg
            0,  # s_mkfs_time
            bytes(68),  # s_jnl_blocks
            0,  # s_blocks_count_hi
            0,  # s_r_blocks_count_hi
            0,  # s_free_blocks_count_hi
            EXTRA_SIZE,  # s_min_extra_isize
            EXTRA_SIZE,  # s_want_extra_isize
            2,  # s_flags: hashes of unsigned characters
            0,  # s_raid_stride
            0,  # s_mmp_update_interval
            0,  # s_mmp_block
            0,  # s_raid_stripe_width
            self.log_groups_per_flex,
            0,  # s_checksum_type
            0,  # s_encryption_level
            0,
            0,  # s_kbytes_written
            bytes(204),
            0,  # s_backup_bgs: no copy of the superblock anywhere
            0,
            bytes(428),
        )

    @classmethod
    def unpack(cls, data: bytes) -> Superblock:
        """Return a record that `pack` made.

        Raises:
            FormatError: it has another length, no magic, or other features.
        """
        if len(data) != SUPERBLOCK_SIZE:
            raise _damaged(0, f"{SUPERBLOCK_SIZE} bytes", f"{len(data)}")
        fields = _SUPERBLOCK.unpack(data)
        if fields[15] != MAGIC:
            raise _damaged(56, f"magic {MAGIC:#x}", f"{fields[15]:#x}")
        if fields[28:31] != (COMPAT, INCOMPAT, RO_COMPAT):
            raise _damaged(92, f"features {COMPAT:#x} {INCOMPAT:#x} {RO_COMPAT:#x}", "others")
        wanted = (fields[at] for at in (0, 1, 3, 4, 10, 60, 31, 42))
        found = cls._make(wanted)
        if found.pack() != data:
            raise _damaged(0, "what this writer fills in", "other values")
        return found


COMPAT = (
    EXT4_FEATURE_COMPAT_EXT_ATTR | EXT4_FEATURE_COMPAT_DIR_INDEX | EXT4_FEATURE_COMPAT_SPARSE_SUPER2
)
INCOMPAT = (
    EXT4_FEATURE_INCOMPAT_FILETYPE | EXT4_FEATURE_INCOMPAT_EXTENTS | EXT4_FEATURE_INCOMPAT_FLEX_BG
)
RO_COMPAT = (
    EXT4_FEATURE_RO_COMPAT_SPARSE_SUPER
    | EXT4_FEATURE_RO_COMPAT_LARGE_FILE
    | EXT4_FEATURE_RO_COMPAT_HUGE_FILE
    | EXT4_FEATURE_RO_COMPAT_GDT_CSUM
    | EXT4_FEATURE_RO_COMPAT_DIR_NLINK
    | EXT4_FEATURE_RO_COMPAT_EXTRA_ISIZE
)


def dirent_size(name: bytes) -> int:
    """Return the bytes that a name takes in a directory."""
    return (DIRENT.size + len(name) + 3) & ~3


def _damaged(at: int, expected: str, got: str) -> FormatError:
    return FormatError(FORMAT, SUPERBLOCK_AT + at, expected=expected, got=got)


def _crc16_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0xA001 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC16 = _crc16_table()


def crc16(seed: int, data: Iterable[int]) -> int:
    """Return the CRC-16 of bytes (polynomial 0x8005, reflected, not inverted), from a seed on."""
    table = _CRC16
    for byte in data:
        seed = seed >> 8 ^ table[(seed ^ byte) & 0xFF]
    return seed
