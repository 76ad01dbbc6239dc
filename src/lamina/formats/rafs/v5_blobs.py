"""The blobs of a bootstrap of version 5."""

from __future__ import annotations

import re

from lamina.formats.rafs.flags import (
    BlobFeatures,
    Compressor,
    Digester,
    damaged,
    parse_features,
)
from lamina.formats.rafs.layout import (
    MAX_BLOB_CHUNKS,
    MAX_BLOB_SIZE,
    V5_BLOB,
    V5_EXTENDED_BLOB,
    V5Superblock,
)
from lamina.formats.rafs.metadata import BootstrapData
from lamina.formats.rafs.model import UNKNOWN, Blob

MAX_BLOBS = 1 << 16
"""As many layers as no image has."""
_ID = re.compile(rb"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")
"""Names of files: nothing that leads elsewhere."""


def read_v5_blobs(
    data: BootstrapData, superblock: V5Superblock, compressor: Compressor, digester: Digester
) -> tuple[Blob, ...]:
    """Return the blobs, in the order of their indexes.

    Args:
        data: the bootstrap.
        superblock: its superblock.
        compressor: of all blobs.
        digester: of all blobs.

    Raises:
        FormatError: the tables lie outside the bootstrap, or break a rule.
    """
    at = superblock.blob_table_offset
    raw = data.take(at, superblock.blob_table_size, "blob table")
    blobs: list[Blob] = []
    start = 0
    # Ids are parted by a NUL, and the table is padded with such to 8 bytes.
    while len(raw) - start > V5_BLOB.size:
        offset, size = V5_BLOB.unpack_from(raw, start)
        body = start + V5_BLOB.size
        stop = raw.find(b"\0", body)
        stop = len(raw) if stop < 0 else stop
        id = raw[body:stop]
        if not _ID.fullmatch(id):
            raise damaged(at + body, "the id of a blob", id[:80])
        if len(blobs) == MAX_BLOBS:
            raise damaged(at + body, f"at most {MAX_BLOBS} blobs", "more")
        blobs.append(Blob(id.decode(), UNKNOWN, compressor, digester, readahead=(offset, size)))
        start = stop + 1
    return _extended(data, superblock, blobs)


def _extended(data: BootstrapData, superblock: V5Superblock, blobs: list[Blob]) -> tuple[Blob, ...]:
    count = superblock.extended_blob_table_entries
    if not count:
        return tuple(blobs)
    at = superblock.extended_blob_table_offset
    if count != len(blobs):
        raise damaged(at, f"{len(blobs)} extended entries of blobs", count)
    raw = data.take(at, count * V5_EXTENDED_BLOB.size, "extended blob table")
    found = []
    for index, (blob, entry) in enumerate(
        zip(blobs, V5_EXTENDED_BLOB.iter_unpack(raw), strict=True)
    ):
        here = at + index * V5_EXTENDED_BLOB.size
        chunk_count, bits, uncompressed_size, compressed_size = entry
        features: BlobFeatures = parse_features(bits, here)
        if chunk_count > MAX_BLOB_CHUNKS:
            raise damaged(here, f"at most {MAX_BLOB_CHUNKS} chunks", chunk_count)
        if uncompressed_size > MAX_BLOB_SIZE or compressed_size > MAX_BLOB_SIZE:
            got = max(uncompressed_size, compressed_size)
            raise damaged(here, f"a blob of at most {MAX_BLOB_SIZE} bytes", got)
        found.append(
            blob._replace(
                chunk_count=chunk_count,
                features=features,
                compressed_size=compressed_size,
                uncompressed_size=uncompressed_size,
            )
        )
    return tuple(found)
