"""Numbers that stand for something, in both versions and in blobs, under upstream's names."""

from __future__ import annotations

import enum

from lamina.errors import FormatError

FORMAT = "rafs"


def damaged(offset: int, expected: str, got: object) -> FormatError:
    """Return the error for a bootstrap or blob that cannot be read at a byte of it."""
    return FormatError(FORMAT, offset, expected=expected, got=str(got)[:200])


class SuperFlags(enum.IntFlag):
    """What holds for a whole bootstrap."""

    COMPRESSION_NONE = 0x1
    COMPRESSION_LZ4 = 0x2
    HASH_BLAKE3 = 0x4
    HASH_SHA256 = 0x8
    EXPLICIT_UID_GID = 0x10
    """Without it, all belongs to whoever serves the image."""
    HAS_XATTR = 0x20
    COMPRESSION_GZIP = 0x40
    COMPRESSION_ZSTD = 0x80
    INLINED_CHUNK_DIGEST = 0x100
    """Blobs have the digests of their chunks."""
    TARTFS_MODE = 0x200
    """Blobs are uncompressed tars, and blocks have 512 bytes."""
    ENCRYPTION_NONE = 0x0100_0000
    ENCRYPTION_AES_128_XTS = 0x0200_0000


_COMPATIBLE = 0xFC00_0000
"""Bits that a reader may pass over."""
_KNOWN = sum(SuperFlags) | _COMPATIBLE


class BlobFeatures(enum.IntFlag):
    """What holds for a blob. The low 16 bits are those that a reader must know."""

    ALIGNED = 0x1
    """Chunks begin at blocks of 4096 bytes once they are uncompressed."""
    INLINED_FS_META = 0x2
    CHUNK_INFO_V2 = 0x4
    ZRAN = 0x8
    """The data is a gzip layer that was there before."""
    SEPARATE = 0x10
    """`blob.meta` is in a blob of its own."""
    INLINED_CHUNK_DIGEST = 0x20
    TARFS = 0x40
    BATCH = 0x80
    """Small chunks are compressed together."""
    ENCRYPTED = 0x100
    IS_CHUNKDICT_GENERATED = 0x200
    IS_SEPARATED_WITH_PREFETCH_FILES = 0x400
    EXTERNAL = 0x800
    HAS_TAR_HEADER = 0x1000_0000
    HAS_TOC = 0x2000_0000
    CAP_TAR_TOC = 0x4000_0000


class ChunkFlags:
    """What holds for a chunk in a bootstrap; plain numbers, since there may be millions."""

    COMPRESSED = 0x1
    HOLE = 0x2
    ENCRYPTED = 0x4
    BATCH = 0x8
    HAS_CRC32 = 0x10
    KNOWN = 0x1F


class Compressor(enum.IntEnum):
    """How chunks are compressed."""

    NONE = 0
    LZ4_BLOCK = 1
    """A raw LZ4 block: no frame, no length before it."""
    GZIP = 2
    ZSTD = 3


class Digester(enum.IntEnum):
    """What digests are; all have 32 bytes."""

    BLAKE3 = 0
    SHA256 = 1


COMPRESSORS = {
    SuperFlags.COMPRESSION_NONE: Compressor.NONE,
    SuperFlags.COMPRESSION_LZ4: Compressor.LZ4_BLOCK,
    SuperFlags.COMPRESSION_GZIP: Compressor.GZIP,
    SuperFlags.COMPRESSION_ZSTD: Compressor.ZSTD,
}
DIGESTERS = {
    SuperFlags.HASH_BLAKE3: Digester.BLAKE3,
    SuperFlags.HASH_SHA256: Digester.SHA256,
}


def parse_super_flags(bits: int, at: int) -> SuperFlags:
    """Return the flags of a superblock.

    Raises:
        FormatError: one is not known, or the image is encrypted.
    """
    if unknown := bits & ~_KNOWN:
        raise damaged(at, "known flags", f"{unknown:#x} besides")
    flags = SuperFlags(bits & ~_COMPATIBLE)
    if flags & SuperFlags.ENCRYPTION_AES_128_XTS:
        raise damaged(at, "an image that is not encrypted", "ENCRYPTION_AES_128_XTS")
    return flags


def compressor_of(flags: SuperFlags, default: Compressor | None, at: int) -> Compressor:
    """Return the one compressor that flags name, or the default where they name none.

    Raises:
        FormatError: they name several, or none and there is no default.
    """
    found = [compressor for bit, compressor in COMPRESSORS.items() if flags & bit]
    if not found and default is not None:
        return default
    if len(found) != 1:
        raise damaged(at, "flags that name one compressor", f"{flags:#x}")
    return found[0]


def digester_of(flags: SuperFlags, default: Digester | None, at: int) -> Digester:
    """Return the one digester that flags name, or the default where they name none.

    Raises:
        FormatError: they name several, or none and there is no default.
    """
    found = [digester for bit, digester in DIGESTERS.items() if flags & bit]
    if not found and default is not None:
        return default
    if len(found) != 1:
        raise damaged(at, "flags that name one digest algorithm", f"{flags:#x}")
    return found[0]


def parse_features(bits: int, at: int) -> BlobFeatures:
    """Return the features of a blob.

    Raises:
        FormatError: one is not known, or the blob is encrypted.
    """
    known = sum(BlobFeatures)
    if unknown := bits & ~known:
        raise damaged(at, "known features of a blob", f"{unknown:#x} besides")
    features = BlobFeatures(bits)
    if features & BlobFeatures.ENCRYPTED:
        raise damaged(at, "a blob that is not encrypted", "ENCRYPTED")
    return features


def parse_compressor(number: int, at: int) -> Compressor:
    """Return the compressor of a number.

    Raises:
        FormatError: there is none.
    """
    if number not in COMPRESSORS.values():
        raise damaged(at, "a known compressor", number)
    return Compressor(number)


def parse_digester(number: int, at: int) -> Digester:
    """Return the digester of a number.

    Raises:
        FormatError: there is none.
    """
    if number not in DIGESTERS.values():
        raise damaged(at, "a known digest algorithm", number)
    return Digester(number)
