"""Bitmaps of groups, as long as they are not all zeros, and ranges of their bits."""

from __future__ import annotations

from lamina.formats.ext4.layout import BLOCK

_BITS = 8 * BLOCK


def set_bits(bitmap: bytearray, start: int, end: int, *, used: bool) -> None:
    """Set or clear the bits from `start` up to, not including, `end`."""
    if start == end:
        return
    first, last = start >> 3, end >> 3
    head = 0xFF << (start & 7) & 0xFF
    tail = (1 << (end & 7)) - 1
    if first == last:
        _mask(bitmap, first, head & tail, used=used)
        return
    if start & 7:
        _mask(bitmap, first, head, used=used)
        first += 1
    bitmap[first:last] = (b"\xff" if used else b"\0") * (last - first)
    if tail:
        _mask(bitmap, last, tail, used=used)


def _mask(bitmap: bytearray, byte: int, mask: int, *, used: bool) -> None:
    if used:
        bitmap[byte] |= mask
    else:
        bitmap[byte] &= ~mask & 0xFF


class Bitmaps:
    """One bitmap for each group, of which only those exist that something was set in.

    Attributes:
        changed: groups whose bitmaps have changed since this was cleared.
    """

    def __init__(self, bits: int, padded_from: int) -> None:
        """Take the bits of a group, and which of them on are always set, as there is nothing."""
        self.changed: set[int] = set()
        self._bits = bits
        self._padded_from = padded_from
        self._bitmaps: dict[int, bytearray] = {}

    def bitmap(self, group: int) -> bytearray:
        """Return the bitmap of a group; from then on it exists."""
        found = self._bitmaps.get(group)
        if found is None:
            found = self._bitmaps[group] = bytearray(BLOCK)
            set_bits(found, self._padded_from, _BITS, used=True)
        return found

    def exists(self, group: int) -> bool:
        """Tell whether the group has a bitmap."""
        return group in self._bitmaps

    def mark(self, start: int, length: int, *, used: bool) -> list[tuple[int, int]]:
        """Mark numbers that are counted over all groups; return how many of which group."""
        parts = []
        while length:
            group, bit = divmod(start, self._bits)
            count = min(length, self._bits - bit)
            set_bits(self.bitmap(group), bit, bit + count, used=used)
            self.changed.add(group)
            parts.append((group, count))
            start += count
            length -= count
        return parts
