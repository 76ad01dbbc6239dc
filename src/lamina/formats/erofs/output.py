"""Bytes of an image on their way out, in order."""

from __future__ import annotations

from typing import BinaryIO

_BUFFER = 1 << 20


class Output:
    """Writes at an ever greater position, with zeros where nothing is written."""

    def __init__(self, out: BinaryIO, position: int) -> None:
        """Begin at a byte of `out`, which is neither closed nor flushed."""
        out.seek(position)
        self._out = out
        self._buffer = bytearray()
        self._base = position

    @property
    def position(self) -> int:
        """Where the next byte goes."""
        return self._base + len(self._buffer)

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._buffer += data
        if len(self._buffer) >= _BUFFER:
            self.flush()

    def pad_to(self, position: int) -> None:
        """Append zeros up to a byte."""
        self._buffer += bytes(position - self.position)

    def flush(self) -> None:
        """Pass on what waits here."""
        self._out.write(self._buffer)
        self._base += len(self._buffer)
        self._buffer.clear()
