"""Nydus images whose data is a gzip layer that was there before (ZRAN), made by hand."""

from __future__ import annotations

import hashlib
import struct
import zlib

from tests.rafs import BLOCK, Made
from tests.rafs_blobs import BLAKE3, NONE, BlobBuilder, Piece, digest
from tests.rafs_v6 import make_v6

_CHUNKS = 20
"""Chunks that are in a context."""
_WINDOW = 1 << 15
_FEATURES = 0x1 | 0x4 | 0x8 | 0x10
"""ALIGNED, CHUNK_INFO_V2, ZRAN, SEPARATE."""
_SLOT = 1408
_SIZES = 88
_META = 168


class ZranBuilder(BlobBuilder):
    """A gzip stream, in which decompression can begin before each so many chunks."""

    def __init__(self) -> None:
        super().__init__(NONE, BLAKE3, unit=BLOCK)
        self.stream = b""
        self._packer = zlib.compressobj(6, wbits=31)
        self._plain = b""
        self._begins: list[tuple[int, int]] = []

    def put(self, data: bytes) -> Piece:
        key = digest(self.digester, data)
        if key in self._known:
            return self._known[key]
        if not self._begins or len(self.pieces) % _CHUNKS == 0:
            self.stream += self._packer.flush(zlib.Z_SYNC_FLUSH)
            self._begins.append((len(self.stream) or 10, len(self._plain)))
        place, begun = self._begins[-1]
        piece = Piece(len(self.pieces), key, place, 0, self.size, len(data), 1)
        piece.batch = (len(self._begins) - 1, len(self._plain) - begun)
        self._plain += data
        self.stream += self._packer.compress(data)
        self.size += -(-len(data) // BLOCK) * BLOCK
        self.pieces.append(piece)
        self._known[key] = piece
        return piece

    def close_batch(self) -> None:
        self.stream += self._packer.flush()

    def infos(self, *, version: int) -> bytes:
        infos = b""
        for piece in self.pieces:
            context, inner = piece.batch or (0, 0)
            first = piece.offset >> 12 | (piece.size - 1) << 32 | 3 << 56
            infos += struct.pack("<QQQ", first, piece.compressed_offset, context << 32 | inner)
        return infos + self.contexts()[0]

    def contexts(self) -> tuple[bytes, int]:
        table = dictionaries = b""
        ends = [*self._begins[1:], (len(self.stream), len(self._plain))]
        for (place, begun), (end, stop) in zip(self._begins, ends, strict=True):
            window = self._plain[max(0, begun - _WINDOW) : begun]
            numbers = (place, begun, len(dictionaries), end - place, stop - begun, len(window))
            table += struct.pack("<QQQIIIBB2x", *numbers, 0, 0)
            dictionaries += window
        return table + dictionaries, len(self._begins)


def make_zran(root: Made) -> tuple[bytes, bytes, bytes]:
    """Return bootstrap, the blob that has `blob.meta`, and the layer."""
    builder = ZranBuilder()
    bootstrap, meta = make_v6(root, version=2, builder=builder)
    raw = bytearray(bootstrap)
    id = hashlib.sha256(builder.stream).hexdigest().encode()
    for at in (_SLOT, BLOCK):
        raw[at : at + 64] = id
    struct.pack_into("<IQ", raw, BLOCK + _SIZES - 4, _FEATURES, len(builder.stream))
    struct.pack_into("<32sQ", raw, BLOCK + _META, hashlib.sha256(meta).digest(), len(meta))
    return bytes(raw), meta, builder.stream
