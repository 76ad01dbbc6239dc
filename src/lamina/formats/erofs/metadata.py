"""The bytes of an image: each offset is checked before it is used, and what was read is kept."""

from __future__ import annotations

from lamina.core.source import RangeSource
from lamina.errors import FormatError

SEGMENT = 1 << 16
"""Bytes read at a time; inodes that follow each other then take one read for about a thousand."""
MAX_SEGMENTS = 256
"""Kept: 16 MiB, the inodes and directories of an image with some 100,000 files."""


def damaged(offset: int, expected: str, got: object) -> FormatError:
    """Return the error for an image that cannot be read at a byte of it."""
    return FormatError("erofs", offset, expected=expected, got=str(got))


class Metadata:
    """A source's bytes, for records that lie close together.

    Attributes:
        size: bytes of the source.
    """

    def __init__(self, source: RangeSource) -> None:
        self.size = source.size
        self._source = source
        self._segments: dict[int, bytes] = {}

    def check(self, offset: int, length: int, what: str) -> None:
        """Refuse a range that does not lie inside.

        Raises:
            FormatError: with `what` for a name of what should be there.
        """
        if not 0 <= offset <= self.size - length:
            expected = f"{what} of {length} bytes"
            raise damaged(offset, expected, f"an image of {self.size} bytes")

    def read(self, offset: int, length: int, what: str) -> bytes:
        """Return so many bytes.

        Args:
            offset: byte in the source; any number.
            length: bounded by what the caller reads, never a number from the image alone.
            what: a name for it, for the error.

        Raises:
            FormatError: the range does not lie inside.
        """
        self.check(offset, length, what)
        number, start = divmod(offset, SEGMENT)
        if start + length <= SEGMENT:
            return self._segment(number)[start : start + length]
        if length > SEGMENT:
            return self._source.read_at(offset, length)
        head = self._segment(number)[start:]
        return head + self._segment(number + 1)[: length - len(head)]

    def _segment(self, number: int) -> bytes:
        segment = self._segments.get(number)
        if segment is None:
            start = number * SEGMENT
            segment = self._source.read_at(start, min(SEGMENT, self.size - start))
            if len(self._segments) >= MAX_SEGMENTS:
                del self._segments[next(iter(self._segments))]
            self._segments[number] = segment
        return segment
