"""Exact reads from bytes that arrive in chunks, without copying what is only passed on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class ChunkStream:
    """Read position in a stream of chunks; an empty chunk is allowed and means nothing."""

    __slots__ = ("_base", "_chunk", "_chunks", "_position")

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks: Iterator[bytes] = iter(chunks)
        self._chunk = b""
        self._position = 0
        self._base = 0

    @property
    def offset(self) -> int:
        """Bytes consumed so far."""
        return self._base + self._position

    def read(self, length: int) -> bytes:
        """Return the next `length` bytes; fewer only where the stream ends."""
        position = self._position
        end = position + length
        if end <= len(self._chunk):
            self._position = end
            return self._chunk[position:end]
        parts = []
        while length and (part := self.take(length)):
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def take(self, length: int) -> memoryview:
        """Return at least one and at most `length` of the next bytes; none where the stream ends.

        The view is of the chunk itself and stays valid as long as it is held.
        """
        if self._position == len(self._chunk) and not self._advance():
            return memoryview(b"")
        start = self._position
        self._position = min(start + length, len(self._chunk))
        return memoryview(self._chunk)[start : self._position]

    def skip(self, length: int) -> int:
        """Pass over `length` bytes and return how many of them were missing at the end."""
        while length and (part := self.take(length)):
            length -= len(part)
        return length

    def drain(self) -> None:
        """Pass over everything that is left."""
        self._position = len(self._chunk)
        while self._advance():
            self._position = len(self._chunk)

    def _advance(self) -> bool:
        self._base += len(self._chunk)
        self._chunk = b""
        self._position = 0
        for chunk in self._chunks:
            if chunk:
                self._chunk = chunk
                return True
        return False
