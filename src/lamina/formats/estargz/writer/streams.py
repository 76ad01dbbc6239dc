"""The streams of a blob: cut, compressed by several threads, and written in their order.

Where streams and the batches of them begin depends on the members and the options alone, so the
blob is the same whatever the number of threads.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from lamina.formats.estargz.writer.codec import Codec
from lamina.formats.estargz.writer.lines import place_line

Write = Callable[[bytes], object]

_BATCH = 1 << 20
"""Bytes of streams that a thread compresses at a time: most files are much smaller."""
_MAX_TAIL = 1 << 20
"""Bytes of headers that may follow a chunk in its stream."""


class Line(NamedTuple):
    """An entry of the TOC that waits for its stream's place; `digest` is the whole file's."""

    start: bytes
    inner: int = 0
    length: int = 0
    chunk_offset: int = 0
    is_last: bool = True
    digest: str = ""


@dataclass(slots=True)
class _Stream:
    data: bytearray = field(default_factory=bytearray)
    lines: list[Line] = field(default_factory=list)
    payload_end: int = 0
    """Where the data of its last chunk ends."""


class _Batch(NamedTuple):
    streams: list[_Stream]
    done: Future[tuple[list[bytes], list[list[str]]]]


class StreamWriter:
    """Takes the bytes of the new tar and the entries of its TOC, in their order.

    A context manager; threads end with it.

    Args:
        write: takes the blob.
        codec: compresses.
        min_size: bytes that a stream has before another chunk starts a new one; 0 starts one for
            each chunk.
        threads: that compress; 0 for one for each processor.

    Attributes:
        offset: bytes of the blob that were written.
        size: bytes of the tar that were taken.
        toc: the JSON so far.
    """

    def __init__(self, write: Write, codec: Codec, *, min_size: int, threads: int) -> None:
        self.offset = 0
        self.size = 0
        self.toc = bytearray(b'{"version":1,"entries":[')
        self._write = write
        self._codec = codec
        self._min_size = min_size
        self._threads = threads or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._threads, "lamina-compress")
        self._stream = _Stream()
        self._has_data = False
        self._batch: list[_Stream] = []
        self._batch_size = 0
        self._running: deque[_Batch] = deque()
        self._tar = hashlib.sha256()
        self._blob = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    @property
    def tar_digest(self) -> str:
        """SHA-256 of the tar, in hexadecimal digits."""
        return self._tar.hexdigest()

    @property
    def blob_digest(self) -> str:
        """SHA-256 of what was written, in hexadecimal digits."""
        return self._blob.hexdigest()

    def add(self, data: bytes) -> None:
        """Append what is no file's data: headers and padding."""
        stream = self._stream
        if len(stream.data) - stream.payload_end >= _MAX_TAIL:
            self._cut()
        self._stream.data += data

    def describe(self, line: bytes) -> None:
        """Append an entry without data to the TOC."""
        self._stream.lines.append(Line(line))

    def add_chunk(
        self, line: bytes, data: bytes, *, offset: int, is_last: bool, digest: str, alone: bool
    ) -> None:
        """Append data of a file.

        Args:
            line: the beginning of the chunk's entry.
            data: at least a byte.
            offset: of the data in the file.
            is_last: whether the file ends with it.
            digest: of the whole file, in the first of several chunks; "" else.
            alone: start a stream whatever `min_size` says.
        """
        # The stream at byte 0 has no data: no TOC can say that offset, and a chunk there would seem
        # to share its stream with every empty file, whose entries have no offset either.
        if alone or not self._has_data or len(self._stream.data) >= self._min_size:
            self._cut()
        self._has_data = True
        stream = self._stream
        inner = len(stream.data)
        stream.lines.append(Line(line, inner, len(data), offset, is_last, digest))
        stream.data += data
        stream.payload_end = len(stream.data)

    def finish(self) -> None:
        """Write all that is left of the streams, and close the TOC."""
        self._cut()
        self._submit()
        while self._running:
            self._take()
        if not self.offset:
            # Readers take a TOC at byte 0 for none.
            self._put(*self._codec.compress([b""]))
        if self.toc.endswith(b","):
            del self.toc[-1:]
        self.toc += b"]}"

    def end(self, tail: bytes, parts: Sequence[bytes]) -> None:
        """Append the end of the tar, and of the blob, as they are."""
        self._tar.update(tail)
        self.size += len(tail)
        for part in parts:
            self._put(part)

    def _cut(self) -> None:
        """End the stream; one without bytes goes on."""
        if not self._stream.data:
            return
        stream, self._stream = self._stream, _Stream()
        self._tar.update(stream.data)
        self.size += len(stream.data)
        self._batch.append(stream)
        self._batch_size += len(stream.data)
        if self._batch_size >= _BATCH:
            self._submit()

    def _submit(self) -> None:
        if not self._batch:
            return
        self._running.append(_Batch(self._batch, self._pool.submit(self._work, self._batch)))
        self._batch = []
        self._batch_size = 0
        while len(self._running) > 2 * self._threads or (
            self._running and self._running[0].done.done()
        ):
            self._take()

    def _work(self, streams: list[_Stream]) -> tuple[list[bytes], list[list[str]]]:
        digests = [
            [_sha256(memoryview(s.data)[i.inner : i.inner + i.length]) for i in s.lines if i.length]
            for s in streams
        ]
        return self._codec.compress([bytes(stream.data) for stream in streams]), digests

    def _take(self) -> None:
        """Write the oldest batch."""
        streams, done = self._running.popleft()
        packed, digests = done.result()
        for stream, data, found in zip(streams, packed, digests, strict=True):
            self._describe(stream, iter(found).__next__)
            self._put(data)

    def _describe(self, stream: _Stream, next_digest: Callable[[], str]) -> None:
        for line in stream.lines:
            self.toc += line.start
            if line.length:
                digest = next_digest()
                whole = not line.chunk_offset and line.is_last
                self.toc += place_line(
                    offset=self.offset,
                    inner=line.inner,
                    digest=digest if whole else line.digest,
                    chunk_offset=line.chunk_offset,
                    chunk_size=0 if line.is_last else line.length,
                    chunk_digest=digest,
                )
            self.toc += b","

    def _put(self, data: bytes) -> None:
        self._blob.update(data)
        self.offset += len(data)
        self._write(data)


def _sha256(data: memoryview) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
