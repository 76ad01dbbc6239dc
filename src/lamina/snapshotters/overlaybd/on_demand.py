"""Blobs that are opened when something of them is wanted, and what that costs."""

from __future__ import annotations

from collections.abc import Callable

from lamina.core.source import RangeSource

Report = Callable[[int, int], None]
"""Is told of requests, and of the bytes that they brought."""


def untold(_requests: int, _size: int) -> None:
    """Tell nobody."""


class OnDemand:
    """A source that is opened with its first read; safe for threads as far as that is.

    Attributes:
        size: bytes.
    """

    def __init__(self, size: int, opener: Callable[[], RangeSource], report: Report) -> None:
        self.size = size
        self._opener = opener
        self._report = report
        self._source: RangeSource | None = None

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from byte `offset` on.

        Raises:
            OutOfRange: the range does not lie inside the source.
            Unavailable: the bytes cannot be had just now.
        """
        source = self._source
        if source is None:  # two threads may open one each, which do the same
            source = self._source = self._opener()
        data = source.read_at(offset, length)
        self._report(1, length)
        return data
