"""The blobs of a bootstrap of version 6, which are EROFS's extra devices."""

from __future__ import annotations

import re

from lamina.formats.erofs.volume import Volume
from lamina.formats.rafs.flags import (
    BlobFeatures,
    damaged,
    parse_compressor,
    parse_digester,
    parse_features,
)
from lamina.formats.rafs.layout import (
    MAX_BLOB_CHUNKS,
    MAX_BLOB_SIZE,
    V6_BLOB,
    V6_EXTENDED_OFFSET,
    V6_SLOT_OFFSET,
    V6Blob,
    V6Extended,
)
from lamina.formats.rafs.metadata import BootstrapData
from lamina.formats.rafs.model import Blob, MetaPlace

MAX_BLOBS = 254
"""Chunks have 8 bits for the number of one, from 1 on."""
_ID = re.compile(rb"[0-9a-f]{64}")
_OWN_ID = b"x" * 64
"""In a bootstrap that lies in a blob: that blob, whose digest cannot be in it."""
_LONGER = BlobFeatures.BATCH | BlobFeatures.ZRAN
"""Blobs whose chunk infos have contexts behind them."""


def read_v6_blobs(data: BootstrapData, extended: V6Extended) -> tuple[Blob, ...]:
    """Return the blobs, in the order of their indexes.

    Raises:
        FormatError: the table lies outside the bootstrap, or breaks a rule.
    """
    at, size = extended.blob_table_offset, extended.blob_table_size
    count, rest = divmod(size, V6_BLOB.size)
    if rest or count > MAX_BLOBS:
        expected = f"a blob table of at most {MAX_BLOBS} entries"
        raise damaged(V6_EXTENDED_OFFSET, expected, f"{size} bytes")
    raw = data.take(at, size, "blob table")
    blobs = []
    for index, entry in enumerate(V6_BLOB.iter_unpack(raw)):
        here = at + index * V6_BLOB.size
        blobs.append(_blob(V6Blob._make(entry), index, extended, here))
    if len({blob.id for blob in blobs}) < count:
        raise damaged(at, "blobs with ids of their own", "one id twice")
    return tuple(blobs)


def _blob(found: V6Blob, index: int, extended: V6Extended, at: int) -> Blob:
    inlined = found.features & BlobFeatures.INLINED_FS_META and found.blob_id == _OWN_ID
    if not inlined and not _ID.fullmatch(found.blob_id):
        raise damaged(at, "the id of a blob, 64 digits", found.blob_id)
    if found.blob_index != index or found.chunk_size != extended.chunk_size:
        expected = f"blob {index} with chunks of {extended.chunk_size} bytes"
        raise damaged(at, expected, f"blob {found.blob_index} with {found.chunk_size}")
    if found.chunk_count > MAX_BLOB_CHUNKS:
        raise damaged(at, f"at most {MAX_BLOB_CHUNKS} chunks", found.chunk_count)
    size = max(found.compressed_size, found.uncompressed_size)
    if size > MAX_BLOB_SIZE:
        raise damaged(at, f"a blob of at most {MAX_BLOB_SIZE} bytes", size)
    features = parse_features(found.features, at)
    if found.cipher:
        raise damaged(at, "a blob that is not encrypted", f"cipher {found.cipher}")
    tarfs = bool(features & BlobFeatures.TARFS)
    if tarfs == bool(features & BlobFeatures.ALIGNED):
        raise damaged(at, "a blob that is either ALIGNED or TARFS", f"features {features:#x}")
    return Blob(
        found.blob_id.decode(),
        found.chunk_count,
        parse_compressor(found.compressor, at),
        parse_digester(found.digester, at),
        features,
        found.compressed_size,
        found.uncompressed_size,
        None if tarfs else _meta(found, features, at),
        found.toc_size,
        found.toc_digest,
        found.meta_digest,
        found.meta_size,
    )


def _meta(found: V6Blob, features: BlobFeatures, at: int) -> MetaPlace | None:
    if not found.ci_uncompressed_size:
        return None
    if features & _LONGER and not features & BlobFeatures.CHUNK_INFO_V2:
        raise damaged(at, "CHUNK_INFO_V2 with BATCH or ZRAN", f"features {features:#x}")
    size = found.ci_uncompressed_size
    if found.ci_compressed_size > size or found.ci_offset > MAX_BLOB_SIZE or size > MAX_BLOB_SIZE:
        expected = f"chunk infos of at most {size} bytes in a blob"
        raise damaged(at, expected, f"{found.ci_compressed_size} at byte {found.ci_offset}")
    return MetaPlace(
        parse_compressor(found.ci_compressor, at), found.ci_offset, found.ci_compressed_size, size
    )


def check_slots(volume: Volume, blobs: tuple[Blob, ...]) -> None:
    """Refuse a bootstrap whose devices are not its blobs, one for one.

    Raises:
        FormatError: the kernel would read from another blob than the tables say.
    """
    at = V6_SLOT_OFFSET * 128
    if len(volume.slots) != len(blobs):
        raise damaged(at, f"{len(blobs)} devices, as there are blobs", len(volume.slots))
    for number, (slot, blob) in enumerate(zip(volume.slots, blobs, strict=True)):
        if slot.tag != blob.id.encode():
            raise damaged(at + number * 128, f"the device of blob {blob.id}", slot.tag)
