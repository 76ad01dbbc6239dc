"""What is fetched and decompressed at a time, and where it goes on the devices of an EROFS mount.

Each blob that has data of files is one device. Of version 6, places on devices are those of the
bootstrap, which is mounted as it is; of version 5, whose places are packed, each chunk begins at a
block, in the order of the blob.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from lamina.errors import FormatError, InvalidArgument
from lamina.formats.erofs.tree import BLOCK
from lamina.formats.rafs.blob_meta import NO_CONTEXT, BlobMeta, ChunkInfo
from lamina.formats.rafs.chunk_data import Buffer, decompress
from lamina.formats.rafs.flags import BlobFeatures, ChunkFlags, Compressor, damaged
from lamina.formats.rafs.layout import aligned
from lamina.formats.rafs.model import DIGEST_LENGTH, UNKNOWN, Blob, Bootstrap, Chunk, Inode
from lamina.formats.rafs.zran import ZranContext, inflate

MAX_DEVICE = BLOCK << 32
"""Bytes of a device: block numbers have 32 bits."""
_WHAT = "lay out RAFS blob"
_NO_METAS: Mapping[int, BlobMeta] = MappingProxyType({})
_NO_DIGESTS: Mapping[int, bytes] = MappingProxyType({})


class Piece(NamedTuple):
    """One chunk.

    Attributes:
        inner_offset: where its bytes start in the uncompressed unit.
        length: in bytes, at least 1.
        cache_offset: where they go on the device, a multiple of BLOCK.
        digest: of them, by the bootstrap's digester; empty where there is none.
    """

    inner_offset: int
    length: int
    cache_offset: int
    digest: bytes


class Unit(NamedTuple):
    """A chunk, or those of a batch or gzip context that follow each other; all numbers in bytes.

    Attributes:
        source_offset: byte of the blob.
        source_length: bytes there.
        cache_offset: byte of the device, a multiple of BLOCK.
        cache_length: up to the end of the last piece.
        compressor: of the whole.
        size: uncompressed.
        pieces: in order, at least one.
        context: of a ZRAN blob, how to begin.
    """

    source_offset: int
    source_length: int
    cache_offset: int
    cache_length: int
    compressor: Compressor
    size: int
    pieces: Sequence[Piece]
    context: ZranContext | None = None


class DeviceLayout(NamedTuple):
    """What fills a device.

    Attributes:
        blob: index of the blob.
        units: by ascending place on the device, not overlapping.
        size: bytes of the device, a multiple of BLOCK.
    """

    blob: int
    units: Sequence[Unit]
    size: int


class Layout(NamedTuple):
    """What `lay_out_v5` and `lay_out_v6` return.

    Attributes:
        devices: device 1 of the EROFS image is the first.
        places: the device's number and byte of it, of each chunk.
    """

    devices: Sequence[DeviceLayout]
    places: Mapping[Chunk, tuple[int, int]]


class _Source(NamedTuple):
    """What a unit is made of, apart from its pieces."""

    offset: int
    length: int
    compressor: Compressor
    size: int
    context: ZranContext | None = None


def lay_out_v5(bootstrap: Bootstrap) -> Layout:
    """Give each chunk of a bootstrap of version 5 a place. Blobs without chunks have no device.

    Raises:
        FormatError: a chunk lies outside its blob, cannot be read alone, or all are too much.
    """
    devices: list[DeviceLayout] = []
    places: dict[Chunk, tuple[int, int]] = {}
    for index, chunks in enumerate(_chunks_of_blobs(bootstrap)):
        if not chunks:
            continue
        blob = bootstrap.blobs[index]
        number = len(devices) + 1
        position = 0
        bound = blob.data_size
        pairs = []
        for chunk in sorted(chunks, key=_in_blob_order):
            places[chunk] = number, position
            piece = Piece(0, chunk.uncompressed_size, position, chunk.digest)
            pairs.append((_source_of_chunk(blob, chunk, bound), piece))
            position += aligned(chunk.uncompressed_size, BLOCK)
        if position > MAX_DEVICE:
            raise damaged(0, f"a blob of at most {MAX_DEVICE} bytes", position)
        devices.append(DeviceLayout(index, list(_units(pairs)), position))
    return Layout(devices, places)


def lay_out_v6(
    bootstrap: Bootstrap,
    metas: Mapping[int, BlobMeta] = _NO_METAS,
    digests: Mapping[int, bytes] = _NO_DIGESTS,
) -> Layout:
    """Say what fills the devices of a bootstrap of version 6: those of its device table, in order.

    What no file has is left out. The chunk table is enough for a blob, unless it `needs_meta`.

    Args:
        bootstrap: as `read_bootstrap` returns it.
        metas: `blob.meta` of blobs, by their indexes.
        digests: `blob.digest` of blobs whose digests the bootstrap does not have.

    Raises:
        FormatError: the bootstrap and `blob.meta` tell different things, or a chunk lies outside
            its blob.
        InvalidArgument: a `blob.meta` is missing that is needed; or a blob is a tar (TARFS).
    """
    devices = []
    places: dict[Chunk, tuple[int, int]] = {}
    for index, chunks in enumerate(_chunks_of_blobs(bootstrap)):
        blob = bootstrap.blobs[index]
        units: list[Unit] = []
        if chunks:
            if blob.features & BlobFeatures.TARFS:
                raise InvalidArgument(_WHAT, blob.id, hint="it is a tar, which has no chunks")
            inlined = digests.get(index, b"")
            if index in metas:
                units += _units(_pairs_of_meta(blob, metas[index], chunks, inlined))
            else:
                units += _units(_pairs_of_table(blob, chunks))
        for chunk in chunks:
            places[chunk] = index + 1, chunk.uncompressed_offset
        devices.append(DeviceLayout(index, units, aligned(blob.uncompressed_size, BLOCK)))
    return Layout(devices, places)


def decode_unit(unit: Unit, data: Buffer) -> Buffer:
    """Return the uncompressed bytes of a unit, which nothing has verified yet.

    Args:
        unit: as a layout has it.
        data: `source_length` bytes of the blob.

    Raises:
        FormatError: they are damaged.
    """
    if unit.context is not None:
        return inflate(unit.context, data)
    return decompress(unit.compressor, data, unit.size)


def needs_meta(blob: Blob) -> bool:
    """Tell whether only `blob.meta` says where the chunks of a blob are, as of a batch.

    It is needed too where a bootstrap of version 6 has no chunk table.
    """
    return bool(blob.features & (BlobFeatures.BATCH | BlobFeatures.ZRAN))


def _chunks_of_blobs(bootstrap: Bootstrap) -> list[set[Chunk]]:
    """Return the chunks that files have, by the index of their blob."""
    found: list[set[Chunk]] = [set() for _ in bootstrap.blobs]
    for inode in inodes(bootstrap.root):
        for _offset, chunk in inode.chunks:
            if not chunk.flags & ChunkFlags.HOLE:
                found[chunk.blob].add(chunk)
    return found


def inodes(root: Inode) -> Iterator[Inode]:
    """Yield each inode of a tree, one with several names as often."""
    waiting = [root]
    while waiting:
        inode = waiting.pop()
        yield inode
        waiting += inode.children.values()


def _in_blob_order(chunk: Chunk) -> tuple[int, int, bytes]:
    return chunk.compressed_offset, chunk.number, chunk.digest


def _source_of_chunk(blob: Blob, chunk: Chunk, bound: int) -> _Source:
    """Return what a chunk is made of; `bound` is the blob's `data_size`."""
    size = chunk.uncompressed_size
    packed = chunk.flags & ChunkFlags.COMPRESSED
    if chunk.flags & ChunkFlags.BATCH or not chunk.compressed_size:
        raise _misplaced(blob, chunk, "a chunk with a size in the blob", "none")
    if not packed and chunk.compressed_size != size:
        raise _misplaced(blob, chunk, f"{size} bytes, as it is stored", chunk.compressed_size)
    end = chunk.compressed_offset + chunk.compressed_size
    if bound and end > bound:
        raise _misplaced(blob, chunk, f"a chunk within {bound} bytes", f"up to {end}")
    compressor = blob.compressor if packed else Compressor.NONE
    return _Source(chunk.compressed_offset, chunk.compressed_size, compressor, size)


def _pairs_of_table(blob: Blob, chunks: Iterable[Chunk]) -> Iterator[tuple[_Source, Piece]]:
    end = 0
    bound = blob.data_size
    incomplete = needs_meta(blob)
    for chunk in sorted(chunks, key=_in_device_order):
        if incomplete or chunk.compressed_offset == UNKNOWN:
            raise InvalidArgument(_WHAT, blob.id, hint="its blob.meta is not given")
        start = chunk.uncompressed_offset
        if start < end:
            raise _misplaced(blob, chunk, f"a chunk from byte {end} of the device on", start)
        end = start + chunk.uncompressed_size
        piece = Piece(0, chunk.uncompressed_size, start, chunk.digest)
        yield _source_of_chunk(blob, chunk, bound), piece


def _pairs_of_meta(
    blob: Blob, meta: BlobMeta, chunks: Iterable[Chunk], inlined: bytes
) -> Iterator[tuple[_Source, Piece]]:
    infos = {info.offset: (number, info) for number, info in enumerate(meta.chunks)}
    end = 0
    for chunk in sorted(chunks, key=_in_device_order):
        number, info = infos.get(chunk.uncompressed_offset, (0, None))
        if info is None or info.size != chunk.uncompressed_size or info.offset < end:
            place = f"{chunk.uncompressed_size} bytes at byte {chunk.uncompressed_offset}"
            raise _misplaced(blob, chunk, "a chunk of blob.meta", place)
        end = info.offset + info.size
        digest = chunk.digest or inlined[number * DIGEST_LENGTH : (number + 1) * DIGEST_LENGTH]
        if len(digest) != DIGEST_LENGTH:
            raise _misplaced(blob, chunk, "a chunk with a digest", "none")
        piece = Piece(info.inner_offset, info.size, info.offset, digest)
        yield _source_of_info(blob, meta, info), piece


def _source_of_info(blob: Blob, meta: BlobMeta, info: ChunkInfo) -> _Source:
    if info.context == NO_CONTEXT:
        compressor = blob.compressor if info.compressed else Compressor.NONE
        return _Source(info.compressed_offset, info.compressed_size, compressor, info.size)
    if meta.contexts:
        context = meta.contexts[info.context]
        return _Source(
            context.in_offset, context.in_size, Compressor.GZIP, context.out_size, context
        )
    packed, size = meta.batches[info.context]
    # A batch says by its sizes alone whether it is compressed.
    compressor = blob.compressor if packed != size else Compressor.NONE
    return _Source(info.compressed_offset, packed, compressor, size)


def _in_device_order(chunk: Chunk) -> int:
    return chunk.uncompressed_offset


def _units(pairs: Iterable[tuple[_Source, Piece]]) -> Iterator[Unit]:
    """Yield units: neighbours on the device that come from the same bytes are one."""
    source: _Source | None = None
    pieces: list[Piece] = []
    for found, piece in pairs:
        if source is not None and found != source:
            yield _unit(source, pieces)
            pieces = []
        source = found
        pieces.append(piece)
    if source is not None:
        yield _unit(source, pieces)


def _unit(source: _Source, pieces: Sequence[Piece]) -> Unit:
    start, last = pieces[0].cache_offset, pieces[-1]
    return Unit(
        source.offset,
        source.length,
        start,
        last.cache_offset + last.length - start,
        source.compressor,
        source.size,
        tuple(pieces),
        source.context,
    )


def _misplaced(blob: Blob, chunk: Chunk, expected: str, got: object) -> FormatError:
    return damaged(
        max(chunk.compressed_offset, 0),
        f"{expected} as chunk {chunk.number} of blob {blob.id}",
        got,
    )
