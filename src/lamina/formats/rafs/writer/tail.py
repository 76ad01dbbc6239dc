"""What follows the chunks in a blob of version 6: `blob.meta`, digests, and the TOC."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import NamedTuple

from lamina.formats.rafs.blob_meta import META_HEADER, META_MAGIC
from lamina.formats.rafs.flags import BlobFeatures, Compressor
from lamina.formats.rafs.model import Chunk, MetaPlace
from lamina.formats.rafs.toc import (
    BLOB_DIGEST,
    BLOB_META,
    BLOB_META_HEADER,
    IMAGE_BLOB,
    TOC_COMPRESSORS,
    TOC_ENTRY,
    TOC_NAME,
)
from lamina.formats.rafs.writer.codec import compress
from lamina.formats.tar.layout import checksum

FEATURES = (
    BlobFeatures.ALIGNED
    | BlobFeatures.INLINED_CHUNK_DIGEST
    | BlobFeatures.HAS_TAR_HEADER
    | BlobFeatures.HAS_TOC
    | BlobFeatures.CAP_TAR_TOC
)
_INFO = struct.Struct("<QQ")
_GNU_MAGIC = b"ustar  \0"
_TAR_HEADER = struct.Struct("<100s24x12s12s8sc100x8s247x")
assert _TAR_HEADER.size == 512
_FLAGS = {compressor: flag for flag, compressor in TOC_COMPRESSORS.items()}


class Tail(NamedTuple):
    """The bytes behind the chunks, and what the blob table says of them.

    Attributes:
        data: all of them.
        meta: place of `blob.meta`.
        toc_size: bytes of the TOC with its header.
        toc_digest: SHA-256 of these.
    """

    data: bytes
    meta: MetaPlace
    toc_size: int
    toc_digest: bytes


def tail(chunks: Sequence[Chunk], *, data_size: int, data_digest: bytes, size: int) -> Tail:
    """Return what follows chunks, each part with its tar header behind it.

    Args:
        chunks: of the blob, in order.
        data_size: bytes of them in the blob.
        data_digest: SHA-256 of those.
        size: bytes of the device.
    """
    entries = [_entry(IMAGE_BLOB, Compressor.NONE, data_digest, (0, data_size, size))]
    parts = [tar_header(IMAGE_BLOB, data_size)]
    infos = b"".join(map(chunk_info, chunks))
    packed = compress(Compressor.ZSTD, infos)
    compressor = Compressor.ZSTD if len(packed) < len(infos) else Compressor.NONE
    place = MetaPlace(compressor, data_size + len(parts[0]), len(packed), len(infos))
    header = META_HEADER.pack(
        META_MAGIC, FEATURES, compressor, len(chunks), *place[1:], 0, 0, 0, META_MAGIC
    )
    entries.append(_entry(BLOB_META, compressor, _sha256(infos), place[1:]))
    end = place.offset + len(packed)
    sizes = (end, len(header), len(header))
    entries.append(_entry(BLOB_META_HEADER, Compressor.NONE, _sha256(header), sizes))
    parts += [packed, header, tar_header(BLOB_META, len(packed) + len(header))]
    digests = b"".join([chunk.digest for chunk in chunks])
    sizes = (data_size + sum(map(len, parts)), len(digests), len(digests))
    entries.append(_entry(BLOB_DIGEST, Compressor.NONE, _sha256(digests), sizes))
    parts += [digests, tar_header(BLOB_DIGEST, len(digests))]
    toc = b"".join(entries)
    toc += tar_header(TOC_NAME, len(toc))
    return Tail(b"".join([*parts, toc]), place, len(toc), _sha256(toc))


def chunk_info(chunk: Chunk) -> bytes:
    """Return the place of a chunk as version 1 of `blob.meta` has it: sizes less one, split up."""
    size, packed = chunk.uncompressed_size - 1, chunk.compressed_size - 1
    first = (size & 0xFFFFF) << 44 | (size >> 20) << 8 | chunk.uncompressed_offset
    second = (packed & 0xFFFFF) << 44 | (packed >> 20) << 40 | chunk.compressed_offset
    return _INFO.pack(first, second)


def tar_header(name: str, size: int) -> bytes:
    """Return the header that follows a part: GNU's, with name and size alone."""
    fields = (b"%011o\0" % size, b"%011o\0" % 0)
    blank = _TAR_HEADER.pack(name.encode(), *fields, b" " * 8, b"0", _GNU_MAGIC)
    total = b"%07o\0" % checksum(blank)
    return _TAR_HEADER.pack(name.encode(), *fields, total, b"0", _GNU_MAGIC)


def _entry(name: str, compressor: Compressor, digest: bytes, place: tuple[int, int, int]) -> bytes:
    return TOC_ENTRY.pack(_FLAGS[compressor], name.encode(), digest, *place)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
