"""Blocks on their way to their places on the device."""

from __future__ import annotations

from typing import BinaryIO

from lamina.formats.ext4.layout import BLOCK

_BUFFER = 1 << 20
_LARGE = 1 << 16


class Spool:
    """Writes at a position that seldom jumps."""

    def __init__(self, out: BinaryIO) -> None:
        """Take an empty file that can seek; it is neither closed nor flushed."""
        self._out = out
        self._buffer = bytearray()
        self._position = 0

    def seek(self, position: int) -> None:
        """Go to a byte of the device."""
        if position != self._position + len(self._buffer):
            self.flush()
            self._out.seek(position)
            self._position = position

    def write(self, data: bytes | memoryview) -> None:
        """Write bytes, and go on behind them."""
        if len(data) >= _LARGE:
            self.flush()
            self._out.write(data)
            self._position += len(data)
            return
        self._buffer += data
        if len(self._buffer) >= _BUFFER:
            self.flush()

    def put_block(self, block: int, data: bytes) -> None:
        """Write whole blocks from one on."""
        self.seek(block * BLOCK)
        self.write(data)

    def flush(self) -> None:
        """Pass on what waits here."""
        if self._buffer:
            self._out.write(self._buffer)
            self._position += len(self._buffer)
            self._buffer.clear()
