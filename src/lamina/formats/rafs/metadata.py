"""The bytes of a bootstrap: what is asked for is checked, and what records have is counted."""

from __future__ import annotations

from lamina.core.source import RangeSource
from lamina.formats.erofs.hierarchy import MAX_EXTENTS, MAX_NAMES
from lamina.formats.erofs.metadata import Metadata
from lamina.formats.rafs.flags import damaged

MAX_CHUNKS = MAX_EXTENTS
"""Of all files, those of hard links once for each name."""


class BootstrapData(Metadata):
    """A bootstrap's bytes, whose errors say so.

    No two records share a byte, so that all together are less than the bootstrap: a sum that grows
    over it stops one that leads to the same bytes again and again.
    """

    def __init__(self, source: RangeSource) -> None:
        super().__init__(source)
        self._left = self.size
        self._names_left = MAX_NAMES
        self._chunks_left = MAX_CHUNKS

    def check(self, offset: int, length: int, what: str) -> None:
        """Refuse a range that does not lie inside.

        Raises:
            FormatError: with `what` for a name of what should be there.
        """
        if not 0 <= offset <= self.size - length:
            expected = f"{what} of {length} bytes"
            raise damaged(offset, expected, f"a bootstrap of {self.size} bytes")

    def take(self, offset: int, length: int, what: str) -> bytes:
        """Return bytes that belong to one record only.

        Raises:
            FormatError: the range does not lie inside, or records have more bytes than there are.
        """
        self.spend(length, offset)
        return self.read(offset, length, what)

    def spend(self, length: int, at: int) -> None:
        """Count bytes that belong to one record only.

        Raises:
            FormatError: records have more bytes than there are.
        """
        self._left -= length
        if self._left < 0:
            expected = f"records that have at most {self.size} bytes together"
            raise damaged(at, expected, f"one with {length} more")

    def count_name(self, at: int) -> None:
        """Count a name.

        Raises:
            FormatError: these are too many.
        """
        self._names_left -= 1
        if self._names_left < 0:
            raise damaged(at, f"at most {MAX_NAMES} names", "more")

    def count_chunks(self, number: int, at: int) -> None:
        """Count chunks of a file.

        Raises:
            FormatError: these are too many.
        """
        self._chunks_left -= number
        if self._chunks_left < 0:
            raise damaged(at, f"at most {MAX_CHUNKS} chunks", "more")
