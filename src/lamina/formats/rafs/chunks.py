"""Chunks as bootstraps have them."""

from __future__ import annotations

from collections.abc import Sequence

from lamina.formats.rafs.flags import ChunkFlags, damaged
from lamina.formats.rafs.layout import (
    CHUNK,
    MAX_BLOB_CHUNKS,
    MAX_BLOB_SIZE,
    MAX_CHUNK_SIZE,
    RawChunk,
)
from lamina.formats.rafs.model import Blob, Chunk

MAX_COMPRESSED = 2 * MAX_CHUNK_SIZE
"""Bytes of a chunk in its blob: compression that fails may make more of it."""


class ChunkRecords:
    """Makes chunks of records; the same chunk of several files is one object."""

    def __init__(self, blobs: Sequence[Blob]) -> None:
        self._blobs = blobs
        self._known: dict[Chunk, Chunk] = {}

    def parse(self, raw: bytes, start: int, at: int) -> tuple[int, Chunk]:
        """Return the place in its file, and the chunk.

        Args:
            raw: bytes with the record.
            start: where it begins in them.
            at: where it begins in the bootstrap, for errors.

        Raises:
            FormatError: it breaks a rule, names no blob, or is encrypted.
        """
        found = RawChunk._make(CHUNK.unpack_from(raw, start))
        if found.blob_index >= len(self._blobs):
            raise damaged(at, f"a chunk of one of {len(self._blobs)} blobs", found.blob_index)
        if found.flags & ~ChunkFlags.KNOWN or found.flags & ChunkFlags.ENCRYPTED:
            raise damaged(at, "a chunk with known flags, not encrypted", f"flags {found.flags:#x}")
        if found.number >= MAX_BLOB_CHUNKS:
            raise damaged(at, f"a number below {MAX_BLOB_CHUNKS}", found.number)
        if not 0 < found.uncompressed_size <= MAX_CHUNK_SIZE:
            raise damaged(at, f"1 to {MAX_CHUNK_SIZE} bytes", found.uncompressed_size)
        if found.compressed_size > MAX_COMPRESSED:
            raise damaged(at, f"at most {MAX_COMPRESSED} bytes in the blob", found.compressed_size)
        end = found.uncompressed_offset + found.uncompressed_size
        if end > MAX_BLOB_SIZE or found.compressed_offset + found.compressed_size > MAX_BLOB_SIZE:
            raise damaged(at, f"a chunk within {MAX_BLOB_SIZE} bytes", f"one up to {end}")
        chunk = Chunk(
            found.blob_index,
            found.number,
            found.block_id,
            found.flags,
            found.compressed_offset,
            found.compressed_size,
            found.uncompressed_offset,
            found.uncompressed_size,
            found.crc32,
        )
        return found.file_offset, self._known.setdefault(chunk, chunk)
