"""Places of inodes behind each other, where smaller ones fill what larger ones have left."""

from __future__ import annotations

from lamina.formats.erofs.tree import BLOCK


class Slots:
    """Hands out places.

    Attributes:
        end: byte in the image behind all that was handed out.
    """

    def __init__(self, start: int) -> None:
        """Begin at a byte of the image."""
        self.end = start
        self._gap = (0, 0)

    def take(self, size: int, *, in_one_block: bool) -> int:
        """Return the byte where so many bytes go.

        Args:
            size: a multiple of INODE_SLOT; of a block at most where it has to be in one.
            in_one_block: the place must not cross a block, as the kernel has it of an inode
                with its data beside it.
        """
        start, end = self._gap
        if size <= end - start:
            self._gap = (start + size, end)
            return start
        if in_one_block and self.end % BLOCK + size > BLOCK:
            border = -(-self.end // BLOCK) * BLOCK
            if border - self.end > end - start:
                self._gap = (self.end, border)
            self.end = border
        at = self.end
        self.end += size
        return at
