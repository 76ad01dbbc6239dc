"""The records of an EROFS image, as the kernel's `fs/erofs/erofs_fs.h` has them.

All numbers are little-endian. A block has BLOCK bytes (`blkszbits` 12, the only size that is
written). Where things lie:

    byte 1024           the superblock, 128 bytes; its checksum covers all that follows in block 0
    devt_slotoff * 128  a slot of 128 bytes for each extra device; device 1 has the first
    meta_blkaddr blocks + nid * 32      an inode: 32 bytes (compact) or 64 (extended), then its
                        xattrs, then its chunk indexes (at a multiple of 8) or the tail of its data
    xattr_blkaddr blocks + id * 4       a shared xattr entry

A directory's data is blocks of their own: the dirents of a block, then their names without any NUL
between them. Names ascend bytewise through the whole directory, `.` and `..` among them.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import NamedTuple

from lamina.formats.crc32c import crc32c
from lamina.formats.erofs.tree import BLOCK

BLOCK_BITS = 12
assert 1 << BLOCK_BITS == BLOCK

EROFS_SUPER_OFFSET = 1024
EROFS_SUPER_MAGIC_V1 = 0xE0F5E1E2
CRC_SEED = 0xFFFFFFFF
"""Of the superblock's CRC-32C, which is not inverted at the end."""

EROFS_FEATURE_COMPAT_SB_CHKSUM = 0x1
EROFS_FEATURE_COMPAT_MTIME = 0x2
EROFS_FEATURE_COMPAT_XATTR_FILTER = 0x4

EROFS_FEATURE_INCOMPAT_LZ4_0PADDING = 0x1
EROFS_FEATURE_INCOMPAT_COMPR_CFGS = 0x2
EROFS_FEATURE_INCOMPAT_CHUNKED_FILE = 0x4
EROFS_FEATURE_INCOMPAT_DEVICE_TABLE = 0x8
EROFS_FEATURE_INCOMPAT_ZTAILPACKING = 0x10
EROFS_FEATURE_INCOMPAT_FRAGMENTS = 0x20
EROFS_FEATURE_INCOMPAT_XATTR_PREFIXES = 0x40
EROFS_FEATURE_INCOMPAT_48BIT = 0x80
EROFS_FEATURE_INCOMPAT_METABOX = 0x100

EROFS_INODE_LAYOUT_COMPACT = 0
EROFS_INODE_LAYOUT_EXTENDED = 1
EROFS_INODE_FLAT_PLAIN = 0
EROFS_INODE_COMPRESSED_FULL = 1
EROFS_INODE_FLAT_INLINE = 2
EROFS_INODE_COMPRESSED_COMPACT = 3
EROFS_INODE_CHUNK_BASED = 4
EROFS_I_VERSION_MASK = 0x1
EROFS_I_DATALAYOUT_BIT = 1
EROFS_I_DATALAYOUT_MASK = 0x7
EROFS_I_NLINK_1_BIT = 4
"""Of non-directories (Linux >= 6.15); the same bit of a directory omits its `.`. Not written."""

EROFS_CHUNK_FORMAT_BLKBITS_MASK = 0x1F
EROFS_CHUNK_FORMAT_INDEXES = 0x20
EROFS_CHUNK_FORMAT_48BIT = 0x40

EROFS_NULL_ADDR = 0xFFFFFFFF
"""As a block number: a hole."""

EROFS_XATTR_INDEX_USER = 1
EROFS_XATTR_INDEX_POSIX_ACL_ACCESS = 2
EROFS_XATTR_INDEX_POSIX_ACL_DEFAULT = 3
EROFS_XATTR_INDEX_TRUSTED = 4
EROFS_XATTR_INDEX_LUSTRE = 5
EROFS_XATTR_INDEX_SECURITY = 6
EROFS_XATTR_LONG_PREFIX = 0x80

XATTR_PREFIXES: dict[int, bytes] = {
    EROFS_XATTR_INDEX_USER: b"user.",
    EROFS_XATTR_INDEX_POSIX_ACL_ACCESS: b"system.posix_acl_access",
    EROFS_XATTR_INDEX_POSIX_ACL_DEFAULT: b"system.posix_acl_default",
    EROFS_XATTR_INDEX_TRUSTED: b"trusted.",
    EROFS_XATTR_INDEX_LUSTRE: b"lustre.",
    EROFS_XATTR_INDEX_SECURITY: b"security.",
}
"""What an entry's name begins with, by its index; the names of the two ACLs are whole."""

EROFS_FT_REG_FILE = 1
EROFS_FT_DIR = 2
EROFS_FT_CHRDEV = 3
EROFS_FT_BLKDEV = 4
EROFS_FT_FIFO = 5
EROFS_FT_SOCK = 6
EROFS_FT_SYMLINK = 7

FILE_TYPES: dict[int, int] = {
    stat.S_IFREG: EROFS_FT_REG_FILE,
    stat.S_IFDIR: EROFS_FT_DIR,
    stat.S_IFCHR: EROFS_FT_CHRDEV,
    stat.S_IFBLK: EROFS_FT_BLKDEV,
    stat.S_IFIFO: EROFS_FT_FIFO,
    stat.S_IFSOCK: EROFS_FT_SOCK,
    stat.S_IFLNK: EROFS_FT_SYMLINK,
}
"""The type in a dirent, by `stat.S_IFMT` of the mode."""

MAX_NAME = 255
MAX_TARGET = 4095
"""Bytes of a symbolic link's target: PATH_MAX without its NUL."""
MAX_ID = (1 << 32) - 2
"""Of users and groups; the number after it is the kernel's "no one"."""
MAX_SIZE = (1 << 63) - 1
MAX_XATTR_VALUE = (1 << 16) - 1
MAX_XATTR_ICOUNT = (1 << 16) - 1
MAX_SHARED_XATTRS = 255
"""Of one inode."""
MAX_DEVICES = (1 << 16) - 1
MAJOR_BITS, MINOR_BITS = 12, 20
"""Of device numbers in Linux (<linux/kdev_t.h>)."""
SECOND = 1_000_000_000

SUPERBLOCK = struct.Struct("<IIIBBHQqIIII16s16sIHHHBBIQBBxxIQ8x")
assert SUPERBLOCK.size == 128
DEVICE_SLOT = struct.Struct("<64sIIHH52x")
assert DEVICE_SLOT.size == 128
INODE_SLOT = 32
"""Bytes: what nids count."""
COMPACT_INODE = struct.Struct("<HHHHIIIIHH4x")
assert COMPACT_INODE.size == 32
EXTENDED_INODE = struct.Struct("<HHHHQIIIIqII16x")
assert EXTENDED_INODE.size == 64
CHUNK_INDEX = struct.Struct("<HHI")
assert CHUNK_INDEX.size == 8
DIRENT = struct.Struct("<QHBx")
assert DIRENT.size == 12
XATTR_HEADER = struct.Struct("<IB7x")
assert XATTR_HEADER.size == 12
XATTR_ENTRY = struct.Struct("<BBH")
assert XATTR_ENTRY.size == 4
XATTR_ALIGNMENT = 4
"""Of entries, shared or not, and the unit of their ids and of `i_xattr_icount`."""


class Superblock(NamedTuple):
    """`struct erofs_super_block`: 128 bytes at EROFS_SUPER_OFFSET.

    Attributes:
        magic: EROFS_SUPER_MAGIC_V1.
        checksum: see `superblock_checksum`; counts if EROFS_FEATURE_COMPAT_SB_CHKSUM is set.
        feature_compat: EROFS_FEATURE_COMPAT_* bits.
        blkszbits: binary logarithm of the bytes of a block.
        sb_extslots: units of 16 bytes by which the superblock is longer.
        rootnid: nid of the root directory; the high half of `blocks` in 48-bit images.
        inos: number of inodes.
        epoch: seconds since 1970: the modification time of compact inodes, or from Linux 6.15 on
            what their own is added to.
        fixed_nsec: nanoseconds of the same.
        blocks: blocks of the image, for statfs(2) only.
        meta_blkaddr: block from which nids count.
        xattr_blkaddr: block from which ids of shared xattrs count.
        uuid: of the filesystem, 16 bytes.
        volume_name: with a NUL behind it where it has less than 16 bytes.
        feature_incompat: EROFS_FEATURE_INCOMPAT_* bits.
        available_compr_algs: compression; 0 for none.
        extra_devices: slots in the device table.
        devt_slotoff: where that is, in units of 128 bytes.
        dirblkbits: must be 0.
        xattr_prefix_count: long prefixes of xattr names.
        xattr_prefix_start: where they are, in units of 4 bytes.
        packed_nid: nid of the inode that has fragments.
        xattr_filter_reserved: 0.
        ishare_xattr_prefix_id: which long prefix marks files with equal content.
        build_time: seconds after `epoch` at which the image was made.
        rootnid_8b: nid of the root directory of 48-bit images.
    """

    magic: int
    checksum: int
    feature_compat: int
    blkszbits: int
    sb_extslots: int
    rootnid: int
    inos: int
    epoch: int
    fixed_nsec: int
    blocks: int
    meta_blkaddr: int
    xattr_blkaddr: int
    uuid: bytes
    volume_name: bytes
    feature_incompat: int
    available_compr_algs: int
    extra_devices: int
    devt_slotoff: int
    dirblkbits: int
    xattr_prefix_count: int
    xattr_prefix_start: int
    packed_nid: int
    xattr_filter_reserved: int
    ishare_xattr_prefix_id: int
    build_time: int
    rootnid_8b: int


class DeviceSlot(NamedTuple):
    """`struct erofs_deviceslot`: 128 bytes.

    Attributes:
        tag: what names the device, such as a digest; 64 bytes, padded with NULs.
        blocks_lo: blocks of the device, low half.
        uniaddr_lo: where it begins when all devices are taken as one behind the image; 0 for
            nowhere.
        blocks_hi: high half of `blocks_lo`.
        uniaddr_hi: high half of `uniaddr_lo`.
    """

    tag: bytes
    blocks_lo: int
    uniaddr_lo: int
    blocks_hi: int
    uniaddr_hi: int


class CompactInode(NamedTuple):
    """`struct erofs_inode_compact`: 32 bytes.

    Attributes:
        format: version and data layout, see `inode_format`.
        xattr_icount: see `xattr_body_size`.
        mode: as in `st_mode`.
        nb: number of links.
        size: bytes.
        mtime: seconds after the superblock's `epoch`; taken as 0 before Linux 6.15.
        u: first block (flat layouts), `encode_rdev` (devices), EROFS_CHUNK_FORMAT_* (chunks).
        ino: number of the inode, for statistics only: `st_ino` is the nid.
        uid: owner.
        gid: group.
    """

    format: int
    xattr_icount: int
    mode: int
    nb: int
    size: int
    mtime: int
    u: int
    ino: int
    uid: int
    gid: int


class ExtendedInode(NamedTuple):
    """`struct erofs_inode_extended`: 64 bytes.

    Attributes:
        format: as in CompactInode, as are `xattr_icount`, `mode`, `size`, `u`, `ino`, `uid`, `gid`.
        nb: high half of the first block in 48-bit images, else 0.
        mtime: seconds since 1970, possibly negative.
        mtime_nsec: nanoseconds after that.
        nlink: number of links.
    """

    format: int
    xattr_icount: int
    mode: int
    nb: int
    size: int
    u: int
    ino: int
    uid: int
    gid: int
    mtime: int
    mtime_nsec: int
    nlink: int


class ChunkIndex(NamedTuple):
    """`struct erofs_inode_chunk_index`: 8 bytes.

    Attributes:
        startblk_hi: high half of the block in 48-bit images, else without meaning.
        device_id: 0 for the image, from 1 on the extra devices; only the bits count that it takes
            to write the number of devices.
        startblk_lo: first block on that device; EROFS_NULL_ADDR for a hole.
    """

    startblk_hi: int
    device_id: int
    startblk_lo: int


class Dirent(NamedTuple):
    """`struct erofs_dirent`: 12 bytes.

    Attributes:
        nid: of the inode.
        nameoff: where the name begins in the block; of the first one, also where the dirents end.
        file_type: EROFS_FT_*.
    """

    nid: int
    nameoff: int
    file_type: int


class XattrHeader(NamedTuple):
    """`struct erofs_xattr_ibody_header`: 12 bytes, then `shared_count` ids of 4 bytes each.

    Attributes:
        name_filter: a Bloom filter; without EROFS_FEATURE_COMPAT_XATTR_FILTER it has no meaning.
        shared_count: shared entries that the inode has.
    """

    name_filter: int
    shared_count: int


class XattrEntry(NamedTuple):
    """`struct erofs_xattr_entry`: 4 bytes, then name and value, padded to 4 bytes.

    Attributes:
        name_len: bytes of the name without its prefix.
        name_index: EROFS_XATTR_INDEX_*, or EROFS_XATTR_LONG_PREFIX and the number of a prefix.
        value_size: bytes of the value.
    """

    name_len: int
    name_index: int
    value_size: int


def inode_format(version: int, layout: int) -> int:
    """Return `i_format` for EROFS_INODE_LAYOUT_* and a data layout."""
    return version | layout << EROFS_I_DATALAYOUT_BIT


def xattr_body_size(icount: int) -> int:
    """Return the bytes of an inode's xattrs: its header, and 4 for each count above 1."""
    return XATTR_HEADER.size + XATTR_ALIGNMENT * (icount - 1) if icount else 0


def encode_rdev(device: int) -> int:
    """Return how the kernel writes an `os.makedev` number of MAJOR_BITS and MINOR_BITS."""
    major, minor = os.major(device), os.minor(device)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def decode_rdev(value: int) -> int:
    """Return the `os.makedev` number."""
    return os.makedev(value >> 8 & 0xFFF, value & 0xFF | value >> 12 & 0xFFF00)


def superblock_checksum(block: bytes) -> int:
    """Return the checksum that belongs in the superblock of block 0, whatever is there now."""
    field = EROFS_SUPER_OFFSET + 4
    return crc32c(CRC_SEED, block[EROFS_SUPER_OFFSET:field] + bytes(4) + block[field + 4 : BLOCK])
