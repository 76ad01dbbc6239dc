"""What follows the chunks in a blob of version 6: `blob.meta`, digests, and the TOC."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import NamedTuple

from lamina.formats.erofs.tree import BLOCK
from lamina.formats.rafs.blob_meta import (
    IN_COMPRESSED,
    IN_ZRAN,
    INFO_V1,
    INFO_V2,
    META_HEADER,
    META_MAGIC,
    ZRAN,
)
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
from lamina.formats.rafs.writer.contexts import Place
from lamina.formats.rafs.zran import ZranContext
from lamina.formats.tar.layout import checksum

FEATURES = (
    BlobFeatures.ALIGNED
    | BlobFeatures.INLINED_CHUNK_DIGEST
    | BlobFeatures.HAS_TAR_HEADER
    | BlobFeatures.HAS_TOC
    | BlobFeatures.CAP_TAR_TOC
)
GZIP_FEATURES = FEATURES | BlobFeatures.CHUNK_INFO_V2 | BlobFeatures.ZRAN | BlobFeatures.SEPARATE
_MAX_PACKED = (1 << 24) - 1
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
    making = _Tail(data_size)
    making.describe(IMAGE_BLOB, Compressor.NONE, data_digest, (0, data_size, size))
    making.put(tar_header(IMAGE_BLOB, data_size))
    return making.finish(chunks, FEATURES, b"".join(map(chunk_info, chunks)))


def gzip_tail(
    chunks: Sequence[Chunk], places: Sequence[Place], contexts: Sequence[ZranContext]
) -> Tail:
    """Return a blob that has where chunks are in another one, which is a gzip layer.

    Args:
        chunks: of that, in order.
        places: of each chunk.
        contexts: that these are in.
    """
    infos = b"".join(map(gzip_chunk_info, chunks, places))
    pool = bytearray()
    table = bytearray()
    for context in contexts:
        size = len(context.dictionary)
        table += ZRAN.pack(
            context.in_offset,
            context.out_offset,
            len(pool),
            context.in_size,
            context.out_size,
            size,
            context.byte,
            context.bits,
        )
        pool += context.dictionary
    extra = (len(infos), len(table) + len(pool), len(contexts))
    return _Tail(0).finish(chunks, GZIP_FEATURES, b"".join((infos, table, pool)), extra)


class _Tail:
    """Parts of a blob's end, and entries of its TOC.

    Args:
        at: byte of the blob where it begins.
    """

    def __init__(self, at: int) -> None:
        self._at = at
        self._parts: list[bytes] = []
        self._entries: list[bytes] = []

    def put(self, data: bytes) -> None:
        self._parts.append(data)
        self._at += len(data)

    def describe(
        self, name: str, compressor: Compressor, digest: bytes, place: tuple[int, int, int]
    ) -> None:
        """Add an entry: offset, size in the blob and uncompressed."""
        self._entries.append(TOC_ENTRY.pack(_FLAGS[compressor], name.encode(), digest, *place))

    def finish(
        self,
        chunks: Sequence[Chunk],
        features: BlobFeatures,
        infos: bytes,
        extra: tuple[int, int, int] = (0, 0, 0),
    ) -> Tail:
        """Add all that is behind chunks.

        Args:
            chunks: of the blob.
            features: of the blob.
            infos: chunk infos, and contexts behind them.
            extra: offset and size of the contexts, and how many there are.
        """
        packed = compress(Compressor.ZSTD, infos)
        compressor = Compressor.ZSTD if len(packed) < len(infos) else Compressor.NONE
        place = MetaPlace(compressor, self._at, len(packed), len(infos))
        self.describe(BLOB_META, compressor, _sha256(infos), place[1:])
        self.put(packed)
        header = META_HEADER.pack(
            META_MAGIC, features, compressor, len(chunks), *place[1:], *extra, META_MAGIC
        )
        self._plain(BLOB_META_HEADER, header)
        self.put(tar_header(BLOB_META, len(packed) + len(header)))
        digests = b"".join([chunk.digest for chunk in chunks])
        self._plain(BLOB_DIGEST, digests)
        self.put(tar_header(BLOB_DIGEST, len(digests)))
        toc = b"".join(self._entries)
        toc += tar_header(TOC_NAME, len(toc))
        self.put(toc)
        return Tail(b"".join(self._parts), place, len(toc), _sha256(toc))

    def _plain(self, name: str, data: bytes) -> None:
        self.describe(name, Compressor.NONE, _sha256(data), (self._at, len(data), len(data)))
        self.put(data)


def chunk_info(chunk: Chunk) -> bytes:
    """Return the place of a chunk as version 1 of `blob.meta` has it: sizes less one, split up."""
    size, packed = chunk.uncompressed_size - 1, chunk.compressed_size - 1
    first = (size & 0xFFFFF) << 44 | (size >> 20) << 8 | chunk.uncompressed_offset
    second = (packed & 0xFFFFF) << 44 | (packed >> 20) << 40 | chunk.compressed_offset
    return INFO_V1.pack(first, second)


def gzip_chunk_info(chunk: Chunk, place: Place) -> bytes:
    """Return the place of a chunk in a context, as version 2 of `blob.meta` has it.

    Its place in the blob is that of the context; it says roughly which bytes are needed.
    """
    flags = IN_COMPRESSED | IN_ZRAN
    first = chunk.uncompressed_offset // BLOCK | (chunk.uncompressed_size - 1) << 32 | flags << 56
    second = chunk.compressed_offset | min(chunk.compressed_size, _MAX_PACKED) << 40
    return INFO_V2.pack(first, second, place.context << 32 | place.offset)


def tar_header(name: str, size: int) -> bytes:
    """Return the header that follows a part: GNU's, with name and size alone."""
    fields = (b"%011o\0" % size, b"%011o\0" % 0)
    blank = _TAR_HEADER.pack(name.encode(), *fields, b" " * 8, b"0", _GNU_MAGIC)
    total = b"%07o\0" % checksum(blank)
    return _TAR_HEADER.pack(name.encode(), *fields, total, b"0", _GNU_MAGIC)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
