"""RAFS blobs made by hand, laid out after what Nydus documents and its tools write.

Nothing here comes from the reader: the numbers are written out once more.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lz4.block
from blake3 import blake3

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

NONE, LZ4, GZIP, ZSTD = range(4)
BLAKE3, SHA256 = range(2)
COMPRESSOR_FLAGS = {NONE: 0x1, LZ4: 0x2, GZIP: 0x40, ZSTD: 0x80}
DIGESTER_FLAGS = {BLAKE3: 0x4, SHA256: 0x8}
EXPLICIT, HAS_XATTR, INLINED_DIGEST, TARFS = 0x10, 0x20, 0x100, 0x200


@dataclass
class Piece:
    """A chunk that is in a blob."""

    number: int
    digest: bytes
    compressed_offset: int
    compressed_size: int
    offset: int
    size: int
    flags: int = 0
    batch: tuple[int, int] | None = None

    def raw(self, blob: int, file_offset: int = 0) -> bytes:
        return struct.pack(
            "<32sIIIIQQQII",
            self.digest,
            blob,
            self.flags,
            self.compressed_size,
            self.size,
            self.compressed_offset,
            self.offset,
            file_offset,
            self.number,
            0,
        )


def digest(digester: int, data: bytes) -> bytes:
    return hashlib.sha256(data).digest() if digester == SHA256 else blake3(data).digest()


def compress(compressor: int, data: bytes) -> bytes:
    """Return what is shorter, as the builder does."""
    makers: dict[int, Callable[[bytes], bytes]] = {
        NONE: bytes,
        LZ4: lambda raw: bytes(lz4.block.compress(raw, store_size=False)),
        GZIP: gzip.compress,
        ZSTD: zstd.compress,
    }
    packed = makers[compressor](data)
    return packed if len(packed) < len(data) else data


class BlobBuilder:
    """A blob that grows; equal chunks are in it once."""

    def __init__(self, compressor: int, digester: int, *, unit: int = 1, batch: int = 0) -> None:
        self.compressor, self.digester = compressor, digester
        self.data = b""
        self.pieces: list[Piece] = []
        self.batches: list[tuple[int, int]] = []
        self.size = 0
        self._unit, self._batch = unit, batch
        self._open: list[tuple[Piece, bytes]] = []
        self._known: dict[bytes, Piece] = {}

    def put(self, data: bytes) -> Piece:
        key = digest(self.digester, data)
        if key in self._known:
            return self._known[key]
        piece = Piece(len(self.pieces), key, len(self.data), 0, self.size, len(data))
        self.size += -(-len(data) // self._unit) * self._unit
        if self._batch and len(data) <= self._batch // 2:
            self._add_to_batch(piece, data)
        else:
            self.close_batch()
            packed = compress(self.compressor, data)
            piece.compressed_offset, piece.compressed_size = len(self.data), len(packed)
            piece.flags = int(len(packed) < len(data))
            self.data += packed
        self.pieces.append(piece)
        self._known[key] = piece
        return piece

    def _add_to_batch(self, piece: Piece, data: bytes) -> None:
        held = sum(len(body) for _piece, body in self._open)
        if held + len(data) > self._batch:
            self.close_batch()
            held = 0
        piece.batch, piece.flags = (len(self.batches), held), 9
        self._open.append((piece, data))

    def close_batch(self) -> None:
        if not self._open:
            return
        body = b"".join(data for _piece, data in self._open)
        packed = compress(self.compressor, body)
        for piece, _data in self._open:
            piece.compressed_offset = len(self.data)
        self.data += packed
        self.batches.append((len(packed), len(body)))
        self._open = []

    def infos(self, *, version: int) -> bytes:
        """Return the chunk infos of `blob.meta`, and the batches behind them."""
        if version == 1:
            return b"".join(map(info_v1, self.pieces))
        return b"".join(map(info_v2, self.pieces)) + self.contexts()[0]

    def contexts(self) -> tuple[bytes, int]:
        """Return what follows chunk infos, and how many batches or contexts that are."""
        raw = b"".join(struct.pack("<II32x", *sizes) for sizes in self.batches)
        return raw, len(self.batches)


def info_v1(piece: Piece) -> bytes:
    size, packed = piece.size - 1, piece.compressed_size - 1
    high, low = size >> 20 & 0xF, size & 0xFFFFF
    first = piece.offset | low << 44 | high << 8
    second = piece.compressed_offset | (packed & 0xFFFFF) << 44 | (packed >> 20 & 0xF) << 40
    return struct.pack("<QQ", first, second)


def info_v2(piece: Piece) -> bytes:
    flags = (1 if piece.flags & 1 else 0) | (4 if piece.batch else 0)
    first = piece.offset >> 12 | (piece.size - 1) << 32 | flags << 56
    packed = 0 if piece.batch else piece.compressed_size
    context, inner = piece.batch or (0, 0)
    return struct.pack("<QQQ", first, piece.compressed_offset | packed << 40, context << 32 | inner)


def pad(data: bytes, unit: int = 8) -> bytes:
    return data + bytes(-len(data) % unit)


def tar_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0
    return info.tobuf(tarfile.GNU_FORMAT)


def toc_entry(name: str, body: bytes, offset: int, packed: int, flags: int = 1) -> bytes:
    return struct.pack(
        "<II16s32sQQQ48x",
        flags,
        0,
        name.encode(),
        hashlib.sha256(body).digest(),
        offset,
        packed,
        len(body),
    )


@dataclass
class Tail:
    """A blob with all that follows its data, and where that is."""

    blob: bytes
    ci_offset: int
    ci_compressed: int
    ci_size: int
    toc: bytes


def meta_header(
    features: int,
    compressor: int,
    entries: int,
    place: tuple[int, int, int],
    context: Sequence[int],
) -> bytes:
    """Return the 4096 bytes behind chunk infos; `place` is offset and sizes of these."""
    head = struct.pack("<IIIIQQQ", 0xB10BB10B, features, compressor, entries, *place)
    head += struct.pack("<QQI", *context)
    return head.ljust(4092, b"\0") + struct.pack("<I", 0xB10BB10B)


def add_tail(blob: BlobBuilder, features: int, *, version: int, ci_compressor: int) -> Tail:
    blob.close_batch()
    infos = blob.infos(version=version)
    packed = compress(ci_compressor, infos)
    if len(packed) == len(infos):
        ci_compressor = NONE
    data = blob.data + tar_header("image.blob", len(blob.data))
    entries = toc_entry("image.blob", blob.data, 0, len(blob.data))
    at = len(data)
    raw, count = blob.contexts()
    contexts = (24 * len(blob.pieces), len(raw), count) if count else (0, 0, 0)
    place = (at, len(packed), len(infos))
    header = meta_header(features, ci_compressor, len(blob.pieces), place, contexts)
    flags = {NONE: 1, ZSTD: 2}.get(ci_compressor, 4)
    entries += toc_entry("blob.meta", infos, at, len(packed), flags)
    entries += toc_entry("blob.meta.header", header, at + len(packed), len(header))
    data += packed + header + tar_header("blob.meta", len(packed) + len(header))
    digests = b"".join(piece.digest for piece in blob.pieces)
    entries += toc_entry("blob.digest", digests, len(data), len(digests))
    data += digests + tar_header("blob.digest", len(digests))
    toc = entries + tar_header("rafs.blob.toc", len(entries))
    return Tail(data + toc, *place, toc)
