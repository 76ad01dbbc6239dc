"""What bootstraps of both versions say of blobs and chunks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from lamina.formats.rafs.flags import COMPRESSORS, DIGESTERS, SuperFlags
from lamina.formats.rafs.layout import CHUNK
from lamina.formats.rafs.model import Blob, Chunk, Inode
from lamina.formats.rafs.units import inodes
from lamina.formats.rafs.writer.options import RafsOptions

_COMPRESSION = {compressor: flag for flag, compressor in COMPRESSORS.items()}
_HASH = {digester: flag for flag, digester in DIGESTERS.items()}


class Tables(NamedTuple):
    """The blobs that a tree's files have chunks of, and these chunks.

    Attributes:
        blobs: in the order of the blob table.
        numbers: their places in it, by the `blob` of chunks.
        chunks: each once, by digest.
    """

    blobs: Sequence[Blob]
    numbers: Mapping[int, int]
    chunks: Sequence[Chunk]


def make_tables(root: Inode, blobs: Sequence[Blob]) -> Tables:
    """Return the tables of a tree; blobs that no file needs are left out.

    Args:
        root: where the tree begins.
        blobs: by the `blob` of chunks.
    """
    chunks = {found.chunk for inode in inodes(root) for found in inode.chunks}
    used = sorted({chunk.blob for chunk in chunks})
    numbers = {blob: number for number, blob in enumerate(used)}
    ordered = sorted(chunks, key=lambda chunk: (chunk.digest, chunk.blob, chunk.number))
    return Tables([blobs[blob] for blob in used], numbers, ordered)


def super_flags(options: RafsOptions, inodes: Iterable[Inode]) -> SuperFlags:
    """Return what the superblock says of all inodes, owners being those that they have."""
    flags = _COMPRESSION[options.compressor] | _HASH[options.digester]
    flags |= SuperFlags.EXPLICIT_UID_GID
    if any(inode.xattrs for inode in inodes):
        flags |= SuperFlags.HAS_XATTR
    return flags


def raw_chunk(chunk: Chunk, blob: int, file_offset: int) -> bytes:
    """Return the record of a chunk.

    Args:
        chunk: as blobs have it.
        blob: its blob's place in the blob table.
        file_offset: byte of the file; 0 in version 6.
    """
    return CHUNK.pack(
        chunk.digest,
        blob,
        chunk.flags,
        chunk.compressed_size,
        chunk.uncompressed_size,
        chunk.compressed_offset,
        chunk.uncompressed_offset,
        file_offset,
        chunk.number,
        chunk.crc32,
    )
