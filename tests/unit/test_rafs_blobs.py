"""Blobs, read: their table of contents, `blob.meta`, and their chunks."""

from __future__ import annotations

import hashlib
import struct
import zlib

import pytest

from lamina.errors import DigestMismatch, FormatError, InvalidArgument
from lamina.formats.rafs.blob_meta import read_blob_meta, read_blob_meta_file
from lamina.formats.rafs.bootstrap import read_bootstrap
from lamina.formats.rafs.chunk_data import decompress
from lamina.formats.rafs.digests import digest_of
from lamina.formats.rafs.flags import BlobFeatures, Compressor, Digester
from lamina.formats.rafs.model import Blob, Bootstrap, MetaPlace
from lamina.formats.rafs.toc import read_toc, read_toc_entry
from lamina.formats.rafs.zran import ZranContext, inflate
from tests.erofs import Bytes
from tests.rafs import noise, sample
from tests.rafs_blobs import (
    GZIP,
    LZ4,
    NONE,
    ZSTD,
    Piece,
    compress,
    info_v1,
    info_v2,
    meta_header,
)
from tests.rafs_v6 import make_v6

TEXT = b"".join(b"line %d of some text\n" % number for number in range(3000))


def made(**options: int) -> tuple[Bootstrap, bytes]:
    raw, blob = make_v6(sample(), **options)  # type: ignore[arg-type]
    return read_bootstrap(Bytes(raw)), blob


@pytest.mark.parametrize("compressor", [NONE, LZ4, GZIP, ZSTD])
def test_chunks_are_decompressed(compressor: int) -> None:
    packed = compress(compressor, TEXT)
    assert bytes(decompress(Compressor(compressor), packed, len(TEXT))) == TEXT
    assert bytes(decompress(Compressor(compressor), memoryview(packed), len(TEXT))) == TEXT


@pytest.mark.parametrize("compressor", [NONE, LZ4, GZIP, ZSTD])
def test_damaged_chunks_are_refused(compressor: int) -> None:
    packed = compress(compressor, TEXT)
    for data, size in (
        (packed[: len(packed) // 2], len(TEXT)),
        (b"", len(TEXT)),
        (packed, len(TEXT) + 1),
        (b"\xff" * len(packed), len(TEXT)),
    ):
        if compressor == NONE and size == len(data):
            continue
        with pytest.raises(FormatError, match="bytes of"):
            decompress(Compressor(compressor), data, size)


def test_no_more_is_made_than_asked_for() -> None:
    bomb = bytes(1 << 26)
    assert len(decompress(Compressor.GZIP, zlib.compress(bomb, wbits=31), 4096)) == 4096
    assert len(decompress(Compressor.ZSTD, compress(ZSTD, bomb), 4096)) == 4096
    with pytest.raises(FormatError):
        decompress(Compressor.LZ4_BLOCK, compress(LZ4, bomb), 4096)


def test_digests() -> None:
    assert digest_of(Digester.SHA256, b"abc").hex() == hashlib.sha256(b"abc").hexdigest()
    # The official test vector of one byte 0.
    expected = "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"
    assert digest_of(Digester.BLAKE3, b"\0").hex() == expected


@pytest.mark.parametrize("ci_compressor", [NONE, ZSTD, LZ4])
@pytest.mark.parametrize("version", [1, 2])
def test_the_table_of_contents(version: int, ci_compressor: int) -> None:
    bootstrap, blob = made(version=version, ci_compressor=ci_compressor, compressor=ZSTD)
    entry = bootstrap.blobs[0]
    source = Bytes(blob)
    toc = read_toc(source, entry.toc_digest)
    assert list(toc) == ["image.blob", "blob.meta", "blob.meta.header", "blob.digest"]
    assert entry.meta is not None
    infos = read_toc_entry(source, toc["blob.meta"])
    assert len(infos) == entry.meta.uncompressed_size
    digests = read_toc_entry(source, toc["blob.digest"])
    assert len(digests) == 32 * entry.chunk_count
    with pytest.raises(DigestMismatch):
        read_toc(source, bytes(31) + b"\1")


def test_a_blob_without_table_of_contents() -> None:
    for data in (b"", bytes(512), bytes(2048)):
        with pytest.raises(FormatError):
            read_toc(Bytes(data))


def test_what_the_table_leads_to_is_verified() -> None:
    bootstrap, blob = made()
    toc = read_toc(Bytes(blob), bootstrap.blobs[0].toc_digest)
    place = toc["blob.digest"].offset
    changed = blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :]
    with pytest.raises(DigestMismatch, match=r"blob\.digest"):
        read_toc_entry(Bytes(changed), toc["blob.digest"])


def numbers(pieces: list[Piece]) -> list[tuple[int, int, int]]:
    return [(each.offset, each.size, each.compressed_offset) for each in pieces]


@pytest.mark.parametrize("version", [1, 2])
def test_chunk_infos(version: int) -> None:
    pieces = [
        Piece(0, b"", 0, 1, 0, 1),
        Piece(1, b"", 1, (1 << 24) - 1, 4096, 1 << 24, 1),
        Piece(2, b"", 1 << 39, 5, 1 << 32, 5),
    ]
    make = info_v1 if version == 1 else info_v2
    raw = b"".join(map(make, pieces))
    blob, data = with_meta(raw, len(pieces), 1 if version == 1 else 5, size=1 << 33)
    meta = read_blob_meta(Bytes(data), blob)
    found = [(each.offset, each.size, each.compressed_offset) for each in meta.chunks]
    assert found == numbers(pieces)
    assert [each.compressed_size for each in meta.chunks] == [1, (1 << 24) - 1, 5]
    assert [each.compressed for each in meta.chunks] == [False, True, False]
    padded = raw + bytes(-len(raw) % 4096) + data[len(raw) :]
    assert read_blob_meta_file(Bytes(padded), blob) == meta


def with_meta(
    infos: bytes, count: int, features: int, *, size: int, context: tuple[int, int, int] = (0, 0, 0)
) -> tuple[Blob, bytes]:
    """Return a blob that is nothing but its `blob.meta`, and its bytes."""
    place = (0, len(infos), len(infos))
    header = meta_header(features, NONE, count, place, context)
    blob = Blob(
        "0" * 64,
        count,
        Compressor.ZSTD,
        Digester.SHA256,
        BlobFeatures(features),
        uncompressed_size=size,
        meta=MetaPlace(Compressor.NONE, *place),
    )
    return blob, infos + header


def test_infos_lie_in_order_and_inside() -> None:
    apart = [Piece(0, b"", 0, 5, 4096, 5), Piece(1, b"", 5, 5, 0, 5)]
    close = [Piece(0, b"", 0, 5, 0, 5000), Piece(1, b"", 5, 5, 4096, 5)]
    beyond = [Piece(0, b"", 0, 5, 1 << 20, 5)]
    for pieces in (apart, close, beyond):
        blob, data = with_meta(b"".join(map(info_v2, pieces)), len(pieces), 5, size=1 << 20)
        with pytest.raises(FormatError, match="between bytes"):
            read_blob_meta(Bytes(data), blob)


def test_encrypted_infos_are_refused_by_name() -> None:
    raw = bytearray(info_v2(Piece(0, b"", 0, 5, 0, 5)))
    raw[7] |= 8
    blob, data = with_meta(bytes(raw), 1, 5, size=1 << 20)
    with pytest.raises(FormatError, match="ENCRYPTED"):
        read_blob_meta(Bytes(data), blob)


def test_batches() -> None:
    bootstrap, blob = made(batch=8192, compressor=LZ4)
    meta = read_blob_meta(Bytes(blob), bootstrap.blobs[0])
    inside = [chunk for chunk in meta.chunks if chunk.context >= 0]
    assert meta.batches
    assert len(inside) == len(meta.chunks) > len(meta.batches)
    for chunk in inside:
        packed, size = meta.batches[chunk.context]
        start = chunk.compressed_offset
        compressor = Compressor.LZ4_BLOCK if packed < size else Compressor.NONE
        body = decompress(compressor, blob[start : start + packed], size)
        part = body[chunk.inner_offset : chunk.inner_offset + chunk.size]
        assert len(part) == chunk.size


def test_a_chunk_outside_its_batch_is_refused() -> None:
    piece = Piece(0, b"", 0, 0, 0, 100, 9, batch=(0, 0))
    table = struct.pack("<II32x", 50, 100)
    for wrong, contexts in (((1, 0), 1), ((0, 1), 1), ((0, 0), 0)):
        piece.batch = wrong
        raw = info_v2(piece) + table
        blob, data = with_meta(raw, 1, 0x85, size=4096, context=(24, 40 * contexts, contexts))
        with pytest.raises(FormatError, match="inside a batch"):
            read_blob_meta(Bytes(data), blob)
    blob, data = with_meta(raw, 1, 0x85, size=4096, context=(24, 400, 10))
    with pytest.raises(FormatError, match="contexts within"):
        read_blob_meta(Bytes(data), blob)


def test_the_header_must_agree_with_the_blob_table() -> None:
    raw = info_v1(Piece(0, b"", 0, 5, 0, 5))
    blob, data = with_meta(raw, 1, 1, size=4096)
    for at, value in ((0, 0), (12, 2), (16, 1), (24, 17), (4092, 0), (8, 3)):
        changed = bytearray(data)
        struct.pack_into("<I", changed, len(raw) + at, value)
        with pytest.raises(FormatError):
            read_blob_meta(Bytes(changed), blob)
    with pytest.raises(FormatError, match=r"bytes of blob\.meta"):
        read_blob_meta(Bytes(data[:-1]), blob)
    with pytest.raises(InvalidArgument, match="it has none"):
        read_blob_meta(Bytes(data), blob._replace(meta=None))


def context_in(stream: bytes, at: int, bits: int, before: bytes, size: int) -> ZranContext:
    data = stream[at:]
    return ZranContext(at, len(data), 0, size, before[-(1 << 15) :], stream[at - 1], bits)


def gzip_with_borders(parts: list[bytes]) -> tuple[bytes, list[int]]:
    """Return a gzip stream, and how many whole bytes it has where each part begins."""
    packer = zlib.compressobj(6, wbits=31)
    stream, borders = b"", []
    for part in parts:
        borders.append(len(stream))
        stream += packer.compress(part) + packer.flush(zlib.Z_PARTIAL_FLUSH)
    return stream + packer.flush(), borders


def test_gzip_from_the_middle_of_a_byte_on() -> None:
    parts = [TEXT[number * 997 : number * 1500 + 1200] for number in range(40)]
    stream, borders = gzip_with_borders(parts)
    seen = set()
    for number in range(1, len(parts)):
        before, after = b"".join(parts[:number]), b"".join(parts[number:])
        fitting = []
        for bits in range(8):
            # Of the byte at the border, some bits are of the part before.
            start = borders[number] + bool(bits)
            context = context_in(stream, start, bits, before, len(after))
            try:
                found = inflate(context, stream[start:])
            except FormatError:
                continue
            if found == after:
                fitting.append(bits)
        assert fitting
        seen.update(fitting)
    assert seen >= set(range(1, 8))


def test_gzip_over_several_members() -> None:
    members = [zlib.compress(part, wbits=31) for part in (TEXT, b"", b"second" * 9000, b"third")]
    stream = b"".join(members)
    context = ZranContext(10, len(stream) - 10, 0, len(TEXT) + 54005, b"", 0, 0)
    assert inflate(context, stream[10:]) == TEXT + b"second" * 9000 + b"third"
    with pytest.raises(FormatError, match="more bytes"):
        inflate(context._replace(out_size=context.out_size + 1), stream[10:])
    with pytest.raises(FormatError):
        inflate(context, stream[11:])


def test_gzip_from_the_end_of_a_member_on() -> None:
    first = zlib.compress(TEXT, wbits=31)
    stream = first + zlib.compress(b"second" * 9000, wbits=31)
    start = len(first) - 8
    for bits in range(8):
        context = context_in(stream, start, bits, TEXT, 54000)
        assert inflate(context, stream[start:]) == b"second" * 9000


def test_data_that_looks_like_a_member() -> None:
    text = bytes(range(8)) + b"\x1f\x8b\x08" + noise(5000)
    # A stored block has five bytes before its data.
    stored = struct.pack("<BHH", 1, len(text) - 5, len(text) - 5 ^ 0xFFFF) + text[5:]
    assert stored[8:11] == b"\x1f\x8b\x08"
    context = ZranContext(0, len(stored), 0, len(text) - 5, b"", 0, 0)
    assert inflate(context, stored) == text[5:]


def test_gzip_of_nothing_but_empty_members_ends() -> None:
    empty = zlib.compress(b"", wbits=31)
    stream = (empty * 100_000)[10:]
    context = ZranContext(10, len(stream), 0, 4096, b"", 0, 0)
    with pytest.raises(FormatError, match="few gzip members"):
        inflate(context, stream)


def test_zran_contexts() -> None:
    context = struct.pack("<QQQIIIBB2x", 11, 5, 2, 100, 4000, 3, 0xAB, 3)
    piece = bytearray(info_v2(Piece(0, b"", 11, 100, 0, 1000, 1)))
    piece[7] |= 2
    struct.pack_into("<II", piece, 16, 3000, 0)
    raw = bytes(piece) + context + b"0123456"
    blob, data = with_meta(raw, 1, 0xD, size=4096, context=(24, 47, 1))
    meta = read_blob_meta(Bytes(data), blob)
    (found,) = meta.contexts
    assert found == ZranContext(11, 100, 5, 4000, memoryview(b"234"), 0xAB, 3)
    assert (meta.chunks[0].context, meta.chunks[0].inner_offset) == (0, 3000)
    for at, value in ((16, 3001), (24 + 16, 5), (24 + 32, 1 << 16), (24 + 28, 1 << 25)):
        changed = bytearray(data)
        struct.pack_into("<I", changed, at, value)
        with pytest.raises(FormatError):
            read_blob_meta(Bytes(changed), blob)
