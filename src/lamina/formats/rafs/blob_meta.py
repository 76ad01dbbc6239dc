"""`blob.meta`: where the chunks of a blob are, in the blob and on its device.

Chunk infos of 16 bytes (version 1) or 24 (version 2) come first, by ascending place on the device;
then what several chunks have in common: batches, or the contexts of a gzip stream and their
dictionaries. A header of 4096 bytes comes last. All but the header may be compressed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from lamina.core.source import RangeSource
from lamina.errors import InvalidArgument
from lamina.formats.rafs.chunk_data import Buffer, decompress
from lamina.formats.rafs.flags import BlobFeatures, damaged
from lamina.formats.rafs.layout import MAX_CHUNK_SIZE, aligned
from lamina.formats.rafs.metadata import MAX_CHUNKS
from lamina.formats.rafs.model import Blob, MetaPlace
from lamina.formats.rafs.zran import MAX_DICTIONARY, MAX_INPUT, MAX_OUTPUT, ZranContext

HEADER_SIZE = 4096
MAX_META = 512 << 20
"""Bytes of `blob.meta`, both ways: it is held in memory whole."""
NO_CONTEXT = -1

META_MAGIC = 0xB10BB10B
META_HEADER = struct.Struct("<IIIIQQQQQI4032xI")
assert META_HEADER.size == HEADER_SIZE
_BLOCK = 4096
INFO_V1 = struct.Struct("<QQ")
INFO_V2 = struct.Struct("<QQQ")
_BATCH = struct.Struct("<II32x")
assert _BATCH.size == 40
ZRAN = struct.Struct("<QQQIIIBB2x")
assert ZRAN.size == 40
_MAX_BATCH = 2 * MAX_CHUNK_SIZE

_LONGER = BlobFeatures.BATCH | BlobFeatures.ZRAN | BlobFeatures.IS_CHUNKDICT_GENERATED
"""Blobs that may have more than chunk infos."""
IN_COMPRESSED, IN_ZRAN, _IN_BATCH, _ENCRYPTED, _HAS_CRC32 = 0x1, 0x2, 0x4, 0x8, 0x10
_KNOWN = IN_COMPRESSED | IN_ZRAN | _IN_BATCH | _HAS_CRC32


class ChunkInfo(NamedTuple):
    """Where a chunk is; all in bytes.

    Attributes:
        offset: byte of the device.
        size: uncompressed.
        compressed_offset: byte of the blob; of a batch, where that begins.
        compressed_size: in the blob; 0 in a batch.
        compressed: whether it is, by itself.
        context: index of the batch or gzip context that it is in, or NO_CONTEXT.
        inner_offset: byte of what that has, uncompressed.
    """

    offset: int
    size: int
    compressed_offset: int
    compressed_size: int
    compressed: bool
    context: int
    inner_offset: int


class Batch(NamedTuple):
    """Chunks that are compressed together: bytes in the blob, and uncompressed."""

    compressed_size: int
    uncompressed_size: int


class BlobMeta(NamedTuple):
    """What `blob.meta` says.

    Attributes:
        chunks: by their numbers in the blob.
        batches: of a BATCH blob.
        contexts: of a ZRAN blob.
    """

    chunks: Sequence[ChunkInfo]
    batches: Sequence[Batch]
    contexts: Sequence[ZranContext]


class _Header(NamedTuple):
    magic: int
    features: int
    compressor: int
    entries: int
    offset: int
    compressed_size: int
    uncompressed_size: int
    context_offset: int
    context_size: int
    context_count: int
    magic_again: int


def read_blob_meta(source: RangeSource, blob: Blob) -> BlobMeta:
    """Read what the blob table leads to.

    Args:
        source: the blob; of a SEPARATE one, that which `Blob.meta_digest` names.
        blob: its entry.

    Raises:
        FormatError: it is damaged, or has what is not supported.
        InvalidArgument: the blob has none.
    """
    place = _place(blob)
    size = place.compressed_size + HEADER_SIZE
    if not 0 <= place.offset <= source.size - size:
        raise damaged(place.offset, f"{size} bytes of blob.meta", f"a blob of {source.size} bytes")
    raw = source.read_at(place.offset, size)
    infos = decompress(place.compressor, raw[: place.compressed_size], place.uncompressed_size)
    return _parse(blob, place, infos, raw[place.compressed_size :])


def read_blob_meta_file(source: RangeSource, blob: Blob) -> BlobMeta:
    """Read a file `ID.blob.meta`, as it lies beside the bootstrap of images without such in blobs.

    Its chunk infos are uncompressed, and padded to 4096 bytes.

    Raises:
        FormatError: it is damaged, or has what is not supported.
        InvalidArgument: the blob has none.
    """
    place = _place(blob)
    padded = aligned(place.uncompressed_size, _BLOCK)
    if source.size != padded + HEADER_SIZE:
        raise damaged(0, f"a file of {padded + HEADER_SIZE} bytes", source.size)
    raw = source.read_at(0, source.size)
    return _parse(blob, place, raw[: place.uncompressed_size], raw[padded:])


def _place(blob: Blob) -> MetaPlace:
    if blob.meta is None:
        raise InvalidArgument("read blob.meta of RAFS blob", blob.id, hint="it has none")
    size = max(blob.meta.compressed_size, blob.meta.uncompressed_size)
    if size > MAX_META:
        raise damaged(blob.meta.offset, f"chunk infos of at most {MAX_META} bytes", size)
    return blob.meta


def _parse(blob: Blob, place: MetaPlace, raw: Buffer, last: bytes) -> BlobMeta:
    header = _Header._make(META_HEADER.unpack(last))
    at = place.offset + place.compressed_size
    if (header.magic, header.magic_again) != (META_MAGIC, META_MAGIC):
        raise damaged(at, f"the magic number {META_MAGIC:#x} twice", f"{header.magic:#x}")
    said = (header.compressor, *header[4:7])
    if said != place:
        raise damaged(at, f"what the blob table says: {tuple(place)}", said)
    generated = blob.features & BlobFeatures.IS_CHUNKDICT_GENERATED
    if header.entries != blob.chunk_count and not generated:
        raise damaged(at, f"{blob.chunk_count} chunks, as in the blob table", header.entries)
    if header.entries > MAX_CHUNKS:
        raise damaged(at, f"at most {MAX_CHUNKS} chunks", header.entries)
    parser = _Parser(blob, header, raw, at)
    return parser.parse()


class _Parser:
    def __init__(self, blob: Blob, header: _Header, raw: Buffer, at: int) -> None:
        self._blob = blob
        self._header = header
        self._raw = raw
        self._at = at
        self._version_2 = bool(blob.features & BlobFeatures.CHUNK_INFO_V2)
        self._bound = blob.data_size
        self._size = aligned(blob.uncompressed_size, _BLOCK)
        self._batches: list[Batch] = []
        self._contexts: list[ZranContext] = []

    def parse(self) -> BlobMeta:
        features = self._blob.features
        info = INFO_V2 if self._version_2 else INFO_V1
        end = self._header.entries * info.size
        if end > len(self._raw):
            raise damaged(self._at, f"{end} bytes of chunk infos", len(self._raw))
        if end < len(self._raw) and not features & _LONGER:
            raise damaged(self._at, f"{end} bytes of chunk infos and no more", len(self._raw))
        if features & BlobFeatures.BATCH and features & BlobFeatures.ZRAN:
            raise damaged(self._at, "either BATCH or ZRAN", f"features {features:#x}")
        if features & BlobFeatures.BATCH:
            self._read_batches()
        elif features & BlobFeatures.ZRAN:
            self._read_contexts()
        unpack = _unpack_v2 if self._version_2 else _unpack_v1
        chunks = []
        position = 0
        for start in range(0, end, info.size):
            flags, chunk = unpack(*info.unpack_from(self._raw, start))
            self._check(flags, chunk, position, start // info.size)
            position = aligned(chunk.offset + chunk.size, _BLOCK)
            chunks.append(chunk)
        return BlobMeta(chunks, self._batches, self._contexts)

    def _read_batches(self) -> None:
        for sizes in _BATCH.iter_unpack(self._table(_BATCH.size)):
            batch = Batch(*sizes)
            if not 0 < batch.compressed_size <= batch.uncompressed_size <= _MAX_BATCH:
                raise damaged(self._at, f"batches of at most {_MAX_BATCH} bytes", batch)
            self._batches.append(batch)

    def _read_contexts(self) -> None:
        table = self._table(ZRAN.size)
        first = self._header.context_offset + len(table)
        pool = self._raw[first : self._header.context_offset + self._header.context_size]
        for fields in ZRAN.iter_unpack(table):
            in_offset, out_offset, dict_offset, in_size, out_size, dict_size, byte, bits = fields
            if dict_size > MAX_DICTIONARY or dict_offset > len(pool) - dict_size:
                got = f"{dict_size} at byte {dict_offset}"
                raise damaged(self._at, f"a dictionary within {len(pool)} bytes", got)
            if bits > 7 or not 0 < in_size <= MAX_INPUT or not 0 < out_size <= MAX_OUTPUT:
                got = f"{in_size} bytes to {out_size}, {bits} bits"
                raise damaged(self._at, f"a context of at most {MAX_OUTPUT} bytes", got)
            if self._bound and in_offset + in_size > self._bound:
                got = f"one up to {in_offset + in_size}"
                raise damaged(self._at, f"a context within {self._bound} bytes", got)
            dictionary = memoryview(pool)[dict_offset : dict_offset + dict_size]
            context = ZranContext(in_offset, in_size, out_offset, out_size, dictionary, byte, bits)
            self._contexts.append(context)

    def _table(self, unit: int) -> Buffer:
        header = self._header
        size = header.context_count * unit
        start = header.context_offset
        if size > header.context_size or start + header.context_size > len(self._raw):
            got = f"{header.context_count} in {header.context_size} bytes at byte {start}"
            raise damaged(self._at, f"contexts within {len(self._raw)} bytes", got)
        if header.context_count > MAX_CHUNKS:
            raise damaged(self._at, f"at most {MAX_CHUNKS} contexts", header.context_count)
        return self._raw[start : start + size]

    def _check(self, flags: int, chunk: ChunkInfo, position: int, number: int) -> None:
        """Refuse a chunk that lies elsewhere than behind the last and inside of all it is in."""
        where = f"chunk {number} "
        if flags & ~_KNOWN:
            name = "ENCRYPTED" if flags & _ENCRYPTED else f"flags {flags:#x}"
            raise damaged(self._at, where + "with known flags, not encrypted", name)
        size = self._size
        if chunk.offset < position or chunk.offset + chunk.size > size:
            got = f"one from {chunk.offset} to {chunk.offset + chunk.size}"
            raise damaged(self._at, where + f"between bytes {position} and {size}", got)
        bound = self._bound
        inner_end = chunk.inner_offset + chunk.size
        packed = chunk.compressed_size
        if flags & _IN_BATCH:
            known = chunk.context < len(self._batches)
            if not known or inner_end > self._batches[chunk.context].uncompressed_size:
                raise damaged(self._at, where + "inside a batch", f"one in {chunk.context}")
            packed = self._batches[chunk.context].compressed_size
        elif flags & IN_ZRAN:
            known = chunk.context < len(self._contexts)
            if not known or inner_end > self._contexts[chunk.context].out_size:
                raise damaged(self._at, where + "inside a context", f"one in {chunk.context}")
        elif not packed:
            raise damaged(self._at, where + "of at least one byte", "none")
        if bound and chunk.compressed_offset + packed > bound:
            got = f"one up to {chunk.compressed_offset + packed}"
            raise damaged(self._at, where + f"within the {bound} bytes of data", got)


def _unpack_v1(first: int, second: int) -> tuple[int, ChunkInfo]:
    size = ((first & 0xF00) << 12 | first >> 44) + 1
    packed = ((second & 0xF00_0000_0000) >> 20 | second >> 44) + 1
    compressed = packed != size
    offset = first & 0xFFF_FFFF_F000
    chunk = ChunkInfo(offset, size, second & 0xFF_FFFF_FFFF, packed, compressed, NO_CONTEXT, 0)
    return int(compressed), chunk


def _unpack_v2(first: int, second: int, data: int) -> tuple[int, ChunkInfo]:
    flags = first >> 56
    inside = bool(flags & (_IN_BATCH | IN_ZRAN))
    chunk = ChunkInfo(
        (first & 0xFFFF_FFFF) << 12,
        (first >> 32 & 0xFFFFFF) + 1,
        second & 0xFF_FFFF_FFFF,
        second >> 40,
        bool(flags & IN_COMPRESSED),
        data >> 32 if inside else NO_CONTEXT,
        data & 0xFFFF_FFFF if inside else 0,
    )
    return flags, chunk
