"""The records of bootstraps.

All numbers are little-endian. Version 5:

    byte 0              the superblock, 8192 bytes
    inode table         4 bytes for each record of an inode: its byte divided by 8
    prefetch table      4 bytes each: numbers of inodes
    blob table          for each blob: 8 bytes, its id, a NUL between ids
    ext. blob table     64 bytes for each blob
    inodes              128 bytes; then name, target, attributes, each padded to 8 bytes; chunks

Version 6 is an EROFS image (`formats.erofs.layout`), with in addition:

    byte 1152           the extended superblock, 256 bytes
    byte 1408           EROFS's device table: a slot for each blob
    blob table          256 bytes for each blob
    prefetch table      4 bytes each: nids
    chunk table         a version 5 chunk for each chunk of all blobs
"""

from __future__ import annotations

import struct
from typing import NamedTuple

ALIGNMENT = 8

V5_MAGIC = 0x52414653
V5_VERSION = 0x500
V5_SUPERBLOCK_SIZE = 8192
V5_SUPERBLOCK = struct.Struct("<IIIIQQQQQIIIIQ")
assert V5_SUPERBLOCK.size == 80
V5_TABLE_ENTRY = struct.Struct("<I")
"""Of the inode table, and of both versions' prefetch tables."""
V5_BLOB = struct.Struct("<II")
V5_EXTENDED_BLOB = struct.Struct("<IIQQ40x")
assert V5_EXTENDED_BLOB.size == 64
V5_INODE = struct.Struct("<32sQQIIIIQQQIIIHHIIq8x")
assert V5_INODE.size == 128
V5_XATTRS = struct.Struct("<Q")
V5_XATTR = struct.Struct("<I")
CHUNK = struct.Struct("<32sIIIIQQQII")
assert CHUNK.size == 80

V5_INODE_SYMLINK = 0x1
"""Flags of an inode."""
V5_INODE_XATTR = 0x4
V5_INODE_HAS_HOLE = 0x8
V5_MAX_PLACE = 1 << 29
"""Of a record, in units of ALIGNMENT bytes."""

MIN_CHUNK_SIZE = 1 << 12
MAX_CHUNK_SIZE = 1 << 24
MAX_BLOB_CHUNKS = 1 << 24
MAX_BLOB_SIZE = 1 << 44

V6_FEATURE_COMPAT = 0x4000_0000
V6_FEATURE_INCOMPAT = 0xC
V6_SLOT_OFFSET = 11
V6_EXTENDED_OFFSET = 1152
V6_EXTENDED = struct.Struct("<QQIIQQQI204x")
assert V6_EXTENDED.size == 256
V6_BLOB = struct.Struct("<64sIIIIIIQQIIQQQ32s32sQQI36x")
assert V6_BLOB.size == 256
V6_CHUNK_ADDRESS = struct.Struct("<HBBI")
assert V6_CHUNK_ADDRESS.size == 8


class V5Superblock(NamedTuple):
    """The first 80 of 8192 bytes.

    Attributes:
        magic: V5_MAGIC.
        version: V5_VERSION.
        sb_size: V5_SUPERBLOCK_SIZE.
        block_size: bytes of a chunk.
        flags: `SuperFlags`.
        inodes_count: inodes; those with several names count once or more.
        inode_table_offset: byte, as are all offsets.
        prefetch_table_offset: as little used where there are no entries.
        blob_table_offset: of the blob table.
        inode_table_entries: records of inodes, and possibly one more that is 0.
        prefetch_table_entries: numbers in it.
        blob_table_size: bytes.
        extended_blob_table_entries: as many as blobs, or 0.
        extended_blob_table_offset: of that table.
    """

    magic: int
    version: int
    sb_size: int
    block_size: int
    flags: int
    inodes_count: int
    inode_table_offset: int
    prefetch_table_offset: int
    blob_table_offset: int
    inode_table_entries: int
    prefetch_table_entries: int
    blob_table_size: int
    extended_blob_table_entries: int
    extended_blob_table_offset: int


class V5Inode(NamedTuple):
    """The first 128 bytes of a record; each name of a hard link has a whole one.

    Attributes:
        digest: of what it has.
        parent: number of its directory.
        ino: inode number; the root's is 1.
        uid: owner.
        gid: group.
        projid: of quotas.
        mode: as in `st_mode`.
        size: bytes of a regular file.
        blocks: of 512 bytes.
        flags: V5_INODE_*.
        nlink: links.
        child_index: of a directory, its first child in the inode table, from 1 on.
        child_count: of a directory, its children; of a regular file, its chunks.
        name_size: bytes of the name.
        symlink_size: bytes of a target.
        rdev: a device's number.
        mtime_nsec: nanoseconds after `mtime`.
        mtime: seconds since 1970.
    """

    digest: bytes
    parent: int
    ino: int
    uid: int
    gid: int
    projid: int
    mode: int
    size: int
    blocks: int
    flags: int
    nlink: int
    child_index: int
    child_count: int
    name_size: int
    symlink_size: int
    rdev: int
    mtime_nsec: int
    mtime: int


class RawChunk(NamedTuple):
    """80 bytes, in both versions; see `model.Chunk`.

    Attributes:
        block_id: the digest.
        blob_index: of the blob table.
        flags: `ChunkFlags`.
        compressed_size: bytes.
        uncompressed_size: bytes.
        compressed_offset: byte of the blob.
        uncompressed_offset: byte of the blob's device.
        file_offset: byte of the file; without meaning in version 6.
        number: of the chunk in the blob.
        crc32: if flags say so.
    """

    block_id: bytes
    blob_index: int
    flags: int
    compressed_size: int
    uncompressed_size: int
    compressed_offset: int
    uncompressed_offset: int
    file_offset: int
    number: int
    crc32: int


class V6Extended(NamedTuple):
    """256 bytes at V6_EXTENDED_OFFSET.

    Attributes:
        flags: `SuperFlags`.
        blob_table_offset: byte, as are all offsets.
        blob_table_size: bytes, as are all sizes.
        chunk_size: of a file's chunks, but for the last.
        chunk_table_offset: of the chunk table.
        chunk_table_size: 0 where there is none.
        prefetch_table_offset: 0 where there is none, whatever its size.
        prefetch_table_size: of the prefetch table.
    """

    flags: int
    blob_table_offset: int
    blob_table_size: int
    chunk_size: int
    chunk_table_offset: int
    chunk_table_size: int
    prefetch_table_offset: int
    prefetch_table_size: int


class V6Blob(NamedTuple):
    """An entry of the blob table: 256 bytes; see `model.Blob`.

    Attributes:
        blob_id: 64 digits.
        blob_index: its place in the table.
        chunk_size: that of the superblock.
        chunk_count: chunks that it has.
        compressor: `Compressor`.
        digester: `Digester`.
        features: `BlobFeatures`.
        compressed_size: bytes of the blob.
        uncompressed_size: bytes of its device.
        toc_size: bytes of the TOC with its header.
        ci_compressor: `Compressor` of `blob.meta`.
        ci_offset: where that is in its blob.
        ci_compressed_size: without its header.
        ci_uncompressed_size: without its header.
        toc_digest: SHA-256.
        meta_digest: name of the blob with `blob.meta`, if that is another one.
        meta_size: bytes of that blob.
        cipher_iv: of encryption.
        cipher: 0 for none.
    """

    blob_id: bytes
    blob_index: int
    chunk_size: int
    chunk_count: int
    compressor: int
    digester: int
    features: int
    compressed_size: int
    uncompressed_size: int
    toc_size: int
    ci_compressor: int
    ci_offset: int
    ci_compressed_size: int
    ci_uncompressed_size: int
    toc_digest: bytes
    meta_digest: bytes
    meta_size: int
    cipher_iv: int
    cipher: int


def aligned(size: int, unit: int = ALIGNMENT) -> int:
    """Return the least multiple of `unit` that is no less."""
    return -(-size // unit) * unit
