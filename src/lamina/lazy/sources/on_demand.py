"""A source that is opened when its first bytes are needed, and may be let go of in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lamina.core.source import RangeSource
from lamina.errors import DataLoss
from lamina.lazy.sources.description import Opener, SourceDescription


class SourceOnDemand:
    """Opens what a description says, again if need be; safe for threads.

    Args:
        size: what the source has to have, in bytes.
    """

    def __init__(self, opener: Opener, description: SourceDescription, size: int) -> None:
        self._opener = opener
        self._description = description
        self._size = size
        self._lock = threading.Lock()
        self._opened: RangeSource | None = None
        self._reads = 0
        self._to_be_closed = False

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from byte `offset` on.

        Raises:
            DataLoss: the source is not of the size that the layer has.
            as the source's own `read_at`, and as opening it.
        """
        with self._reading() as source:
            return source.read_at(offset, length)

    def close(self) -> None:
        """Close the source once no read is under way; a read that begins later opens it anew."""
        with self._lock:
            self._to_be_closed = True
            self._close_if_idle()

    @contextmanager
    def _reading(self) -> Iterator[RangeSource]:
        with self._lock:
            source = self._open()
            self._reads += 1
            self._to_be_closed = False
        try:
            yield source
        finally:
            with self._lock:
                self._reads -= 1
                self._close_if_idle()

    def _open(self) -> RangeSource:
        if self._opened is None:
            source = self._opener(self._description)
            if source.size != self._size:
                _close(source)
                said = f"it has {source.size} bytes, the layer {self._size}"
                raise DataLoss(f"open the source of a lazy layer: {said}")
            self._opened = source
        return self._opened

    def _close_if_idle(self) -> None:
        if self._reads or not self._to_be_closed:
            return
        opened, self._opened = self._opened, None
        _close(opened)


def _close(source: RangeSource | None) -> None:
    """Close a source, if it is of a kind that can be closed."""
    close: Callable[[], None] | None = getattr(source, "close", None)
    if close is not None:
        close()
