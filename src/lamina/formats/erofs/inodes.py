"""Inodes as an image has them."""

from __future__ import annotations

import stat
import struct
from typing import NamedTuple

from lamina.formats.erofs.layout import (
    COMPACT_INODE,
    EROFS_CHUNK_FORMAT_48BIT,
    EROFS_CHUNK_FORMAT_BLKBITS_MASK,
    EROFS_CHUNK_FORMAT_INDEXES,
    EROFS_I_DATALAYOUT_BIT,
    EROFS_I_DATALAYOUT_MASK,
    EROFS_I_NLINK_1_BIT,
    EROFS_I_VERSION_MASK,
    EROFS_INODE_CHUNK_BASED,
    EROFS_INODE_COMPRESSED_COMPACT,
    EROFS_INODE_COMPRESSED_FULL,
    EROFS_INODE_FLAT_INLINE,
    EROFS_INODE_FLAT_PLAIN,
    EROFS_NULL_ADDR,
    EXTENDED_INODE,
    FILE_TYPES,
    INODE_SLOT,
    MAX_SIZE,
    SECOND,
    XATTR_HEADER,
    CompactInode,
    ExtendedInode,
    decode_rdev,
    xattr_body_size,
)
from lamina.formats.erofs.metadata import damaged
from lamina.formats.erofs.volume import Volume

NOWHERE = -1
"""As the first block of a file: all of it is a hole."""

_FORMAT = struct.Struct("<H")
_KNOWN_FORMAT = (2 << EROFS_I_NLINK_1_BIT) - 1
_COMPRESSED = {
    EROFS_INODE_COMPRESSED_FULL: "compressed data (EROFS_INODE_COMPRESSED_FULL)",
    EROFS_INODE_COMPRESSED_COMPACT: "compressed data (EROFS_INODE_COMPRESSED_COMPACT)",
}
_LAYOUTS = {EROFS_INODE_FLAT_PLAIN, EROFS_INODE_FLAT_INLINE, EROFS_INODE_CHUNK_BASED}
_WITH_DATA = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}


class Node(NamedTuple):
    """An inode, without what lies behind it.

    Attributes:
        nid: its number in the image.
        mode: type and permissions, as in `st_mode`.
        nlink: number of links.
        uid: owner.
        gid: group.
        mtime: nanoseconds since the epoch, possibly negative.
        rdev: `os.makedev` number of a device, else 0.
        size: bytes of data.
        layout: EROFS_INODE_FLAT_PLAIN, FLAT_INLINE or CHUNK_BASED.
        data: first block of the data (NOWHERE: a hole), or EROFS_CHUNK_FORMAT_* where it is chunks.
        dot_omitted: whether a directory has no `.`.
        at: byte in the image.
        xattrs_at: byte in the image where its xattrs begin.
        tail_at: byte in the image where they end, before its chunk indexes or the tail of its data.
    """

    nid: int
    mode: int
    nlink: int
    uid: int
    gid: int
    mtime: int
    rdev: int
    size: int
    layout: int
    data: int
    dot_omitted: bool
    at: int
    xattrs_at: int
    tail_at: int

    @property
    def is_directory(self) -> bool:
        """Whether it has entries."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        """Whether it is a file with data."""
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        """Whether its data is a path."""
        return stat.S_ISLNK(self.mode)

    @property
    def file_type(self) -> int:
        """EROFS_FT_*."""
        return FILE_TYPES[stat.S_IFMT(self.mode)]


def parse_node(volume: Volume, nid: int) -> Node:
    """Return the inode of a number, any.

    Raises:
        FormatError: there is none in the image, it is damaged, or it has what is not supported.
    """
    at = (volume.superblock.meta_blkaddr << volume.block_bits) + nid * INODE_SLOT
    raw = volume.metadata.read(at, COMPACT_INODE.size, "inode")
    (format,) = _FORMAT.unpack_from(raw)
    layout = format >> EROFS_I_DATALAYOUT_BIT & EROFS_I_DATALAYOUT_MASK
    if format > _KNOWN_FORMAT or layout not in _LAYOUTS:
        got = _COMPRESSED.get(layout, f"i_format {format:#x}")
        raise damaged(at, "an inode whose data is plain, inline or chunks", got)
    if format & EROFS_I_VERSION_MASK:
        raw = volume.metadata.read(at, EXTENDED_INODE.size, "extended inode")
        return _extended(nid, at, layout, ExtendedInode._make(EXTENDED_INODE.unpack(raw)))
    return _compact(volume, nid, at, layout, CompactInode._make(COMPACT_INODE.unpack(raw)))


def _compact(volume: Volume, nid: int, at: int, layout: int, raw: CompactInode) -> Node:
    superblock = volume.superblock
    flag = bool(raw.format >> EROFS_I_NLINK_1_BIT)
    directory = stat.S_ISDIR(raw.mode)
    one_link = flag and not directory
    xattrs_at = at + COMPACT_INODE.size
    return Node(
        nid,
        _mode(raw.mode, at),
        1 if one_link else raw.nb,
        raw.uid,
        raw.gid,
        (superblock.epoch + raw.mtime) * SECOND + superblock.fixed_nsec,
        _rdev(raw.mode, raw.u),
        raw.size,
        layout,
        _data(raw.mode, layout, raw.u, raw.nb if one_link else 0, at, wide=one_link),
        flag and directory,
        at,
        xattrs_at,
        xattrs_at + _xattr_size(raw.xattr_icount, at),
    )


def _extended(nid: int, at: int, layout: int, raw: ExtendedInode) -> Node:
    if raw.size > MAX_SIZE:
        raise damaged(at, f"a size of at most {MAX_SIZE} bytes", raw.size)
    if raw.mtime_nsec >= SECOND:
        raise damaged(at, f"fewer than {SECOND} nanoseconds", raw.mtime_nsec)
    xattrs_at = at + EXTENDED_INODE.size
    return Node(
        nid,
        _mode(raw.mode, at),
        raw.nlink,
        raw.uid,
        raw.gid,
        raw.mtime * SECOND + raw.mtime_nsec,
        _rdev(raw.mode, raw.u),
        raw.size,
        layout,
        _data(raw.mode, layout, raw.u, raw.nb, at, wide=True),
        bool(raw.format >> EROFS_I_NLINK_1_BIT) and stat.S_ISDIR(raw.mode),
        at,
        xattrs_at,
        xattrs_at + _xattr_size(raw.xattr_icount, at),
    )


def _mode(mode: int, at: int) -> int:
    if stat.S_IFMT(mode) not in FILE_TYPES:
        raise damaged(at, "the mode of a file", f"{mode:#o}")
    return mode


def _rdev(mode: int, u: int) -> int:
    return decode_rdev(u) if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0


def _data(mode: int, layout: int, u: int, high: int, at: int, *, wide: bool) -> int:
    """Return `Node.data`.

    Args:
        mode: type of the file.
        layout: of its data.
        u: what the inode says.
        high: upper half of the first block.
        at: byte of the inode.
        wide: whether the inode has room for an upper half; all bits set are a hole.
    """
    if stat.S_IFMT(mode) not in _WITH_DATA:
        return 0
    if layout == EROFS_INODE_CHUNK_BASED:
        format = u & 0xFFFF
        if format & EROFS_CHUNK_FORMAT_48BIT:
            raise damaged(at, "chunks with block numbers of 32 bits", "EROFS_CHUNK_FORMAT_48BIT")
        if format & ~(EROFS_CHUNK_FORMAT_INDEXES | EROFS_CHUNK_FORMAT_BLKBITS_MASK):
            raise damaged(at, "a known format of chunks", f"{format:#x}")
        return format
    nowhere = (EROFS_NULL_ADDR, 0xFFFF if wide else 0)
    if layout == EROFS_INODE_FLAT_PLAIN and (u, high) == nowhere:
        return NOWHERE
    if high:
        raise damaged(at, "a block number of 32 bits", f"{high:#x}{u:08x}")
    return u


def _xattr_size(icount: int, at: int) -> int:
    size = xattr_body_size(icount)
    if size == XATTR_HEADER.size:
        raise damaged(at, "xattrs behind their header", "a header alone")
    return size
