"""Chunks made and hashed by the reader itself, or by a thread ahead of it while a core is idle."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import Self

from lamina.core.digest import Digest
from lamina.errors import ResourceExhausted

_AHEAD = 16
"""Chunks that may wait for the reader: 4 MiB."""


class HashedChunks:
    """The same chunks, hashed and counted on their way; a context manager and an iterator.

    Inflating and hashing are half of the work of unpacking and release the interpreter's lock. A
    thread for them makes one layer use two cores, but where all cores are busy it only costs: so
    it runs while `ahead` is set, and whoever knows the load sets and clears that at any time.
    """

    def __init__(
        self, chunks: Iterable[bytes], *, max_bytes: int, ahead: threading.Event | None = None
    ) -> None:
        self._chunks = iter(chunks)
        self._max_bytes = max_bytes
        self._ahead = ahead or threading.Event()
        self._closed = False
        self._hash = hashlib.sha256()
        self._size = 0
        self._room = threading.Semaphore(_AHEAD)
        self._thread: threading.Thread | None = None

    @property
    def digest(self) -> Digest:
        """SHA-256 of all chunks; complete once the iterator is exhausted."""
        return Digest(f"sha256:{self._hash.hexdigest()}")

    @property
    def size(self) -> int:
        """Bytes of all chunks."""
        return self._size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed = True
        self._room.release()
        if self._thread is not None:
            self._thread.join()

    def __iter__(self) -> Iterator[bytes]:
        while True:
            if self._ahead.is_set():
                yield from self._from_thread()
            chunk = self._next()
            if chunk is None:
                return
            yield chunk

    def _next(self) -> bytes | None:
        chunk = next(self._chunks, None)
        if chunk is None:
            return None
        self._size += len(chunk)
        if self._size > self._max_bytes:
            raise ResourceExhausted(
                "unpack layer", hint=f"it has more than {self._max_bytes} bytes uncompressed"
            )
        self._hash.update(chunk)
        return chunk

    def _from_thread(self) -> Iterator[bytes]:
        """Yield what a thread makes, until `ahead` is cleared or there is no more."""
        ready: SimpleQueue[bytes | BaseException | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="inflate")
        self._thread.start()
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
            self._room.release()
        self._thread.join()

    def _run(self, ready: SimpleQueue[bytes | BaseException | None]) -> None:
        try:
            while self._ahead.is_set() and (chunk := self._next()) is not None:
                self._room.acquire()
                if self._closed:
                    break
                ready.put(chunk)
        except BaseException as error:
            ready.put(error)
        ready.put(None)
