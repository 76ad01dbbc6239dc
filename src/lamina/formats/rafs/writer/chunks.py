"""Chunks of a blob: hashed and compressed by several threads, and written in their order.

Where batches begin depends on the chunks alone, and which of them are written is settled in their
order, so the blob is the same whatever the number of threads.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Self

from lamina.errors import ResourceExhausted
from lamina.formats.erofs.tree import BLOCK
from lamina.formats.rafs.digests import digest_of
from lamina.formats.rafs.flags import ChunkFlags
from lamina.formats.rafs.layout import MAX_BLOB_CHUNKS, aligned
from lamina.formats.rafs.model import Blob, Chunk
from lamina.formats.rafs.writer.codec import compress
from lamina.formats.rafs.writer.options import RafsOptions

Write = Callable[[bytes], object]

_BATCH = 1 << 20
"""Bytes of chunks that a thread takes at a time: most files are much smaller."""
_MAX_DATA = 1 << 40
"""Bytes of a blob's chunks: `blob.meta` has 40 bits for the place of one."""


class ChunkPool:
    """What blobs an image may refer to, and the chunks that they have.

    Attributes:
        blobs: by the `blob` of chunks.
        chunks: by digest.
    """

    def __init__(self) -> None:
        self.blobs: list[Blob] = []
        self.chunks: dict[bytes, Chunk] = {}


class _Hashing(NamedTuple):
    data: Sequence[bytes]
    digests: Future[list[bytes]]


class _Packing(NamedTuple):
    digests: Sequence[bytes]
    sizes: Sequence[int]
    packed: Future[list[bytes]]


class ChunkWriter:
    """Takes the chunks of files, and writes those that no blob of the pool has.

    A context manager; threads end with it.

    Args:
        write: takes the blob.
        pool: of the image. Its next blob is this one.
        options: how.
        threads: that hash and compress; 0 for one for each processor.

    Attributes:
        digests: of all chunks that were taken, once `finish` has returned.
        written: chunks of this blob, in order.
        offset: bytes of the blob that were written.
        size: bytes of the device.
    """

    def __init__(
        self, write: Write, pool: ChunkPool, options: RafsOptions, *, threads: int
    ) -> None:
        self.digests: list[bytes] = []
        self.written: list[Chunk] = []
        self.offset = 0
        self.size = 0
        self._write = write
        self._pool = pool
        self._options = options
        self._unit = BLOCK if options.version == 6 else 1
        self._threads = threads or len(os.sched_getaffinity(0))
        self._executor = ThreadPoolExecutor(self._threads, "lamina-compress")
        self._batch: list[bytes] = []
        self._batch_size = 0
        self._hashing: deque[_Hashing] = deque()
        self._packing: deque[_Packing] = deque()
        self._coming: set[bytes] = set()
        self._hash = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    @property
    def blob_digest(self) -> str:
        """SHA-256 of what was written, in hexadecimal digits."""
        return self._hash.hexdigest()

    def add(self, data: bytes) -> None:
        """Append a chunk of a file, at least a byte."""
        self._batch.append(data)
        self._batch_size += len(data)
        if self._batch_size >= _BATCH:
            self._submit()

    def finish(self) -> None:
        """Write all that is left.

        Raises:
            ResourceExhausted: as any method that takes chunks: a blob cannot have so many.
        """
        self._submit()
        while self._hashing:
            self._settle()
        while self._packing:
            self._put_batch()

    def put(self, data: bytes) -> None:
        """Append bytes to the blob as they are."""
        self._hash.update(data)
        self.offset += len(data)
        self._write(data)

    def _submit(self) -> None:
        if not self._batch:
            return
        hashing = self._executor.submit(self._digests, self._batch)
        self._hashing.append(_Hashing(self._batch, hashing))
        self._batch = []
        self._batch_size = 0
        while len(self._hashing) > self._threads or (
            self._hashing and self._hashing[0].digests.done()
        ):
            self._settle()

    def _digests(self, batch: Sequence[bytes]) -> list[bytes]:
        return [digest_of(self._options.digester, data) for data in batch]

    def _settle(self) -> None:
        """Compress what is new of the oldest batch that was hashed."""
        hashed = self._hashing.popleft()
        new: dict[bytes, bytes] = {}
        for digest, data in zip(hashed.digests.result(), hashed.data, strict=True):
            self.digests.append(digest)
            if digest not in self._pool.chunks and digest not in self._coming:
                self._coming.add(digest)
                new[digest] = data
        if new:
            sizes = [len(data) for data in new.values()]
            packed = self._executor.submit(self._compress, list(new.values()))
            self._packing.append(_Packing(list(new), sizes, packed))
        while len(self._packing) > 2 * self._threads or (
            self._packing and self._packing[0].packed.done()
        ):
            self._put_batch()

    def _compress(self, batch: Sequence[bytes]) -> list[bytes]:
        return [compress(self._options.compressor, data) for data in batch]

    def _put_batch(self) -> None:
        """Write the oldest batch that was compressed."""
        digests, sizes, packed = self._packing.popleft()
        for digest, size, data in zip(digests, sizes, packed.result(), strict=True):
            self._check()
            chunk = Chunk(
                len(self._pool.blobs),
                len(self.written),
                digest,
                ChunkFlags.COMPRESSED if len(data) < size else 0,
                self.offset,
                len(data),
                self.size,
                size,
                0,
            )
            self._pool.chunks[digest] = chunk
            self._coming.remove(digest)
            self.written.append(chunk)
            self.size += aligned(size, self._unit)
            self.put(data)

    def _check(self) -> None:
        if len(self.written) >= MAX_BLOB_CHUNKS:
            hint = f"it has more than {MAX_BLOB_CHUNKS} chunks: let chunks be larger"
            raise ResourceExhausted("convert layer", hint=hint)
        if max(self.offset, self.size) >= _MAX_DATA:
            hint = f"its files have more than {_MAX_DATA} bytes"
            raise ResourceExhausted("convert layer", hint=hint)
