"""Bytes that can be read at any offset: what format readers and gates work on."""

from __future__ import annotations

from typing import Protocol


class RangeSource(Protocol):
    """Immutable bytes of known size: a file, a blob in the store, or one in a registry."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from byte `offset` on.

        Raises:
            OutOfRange: the range does not lie inside the source.
            Unavailable: the bytes cannot be had just now.
        """
        ...
