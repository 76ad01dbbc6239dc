"""What the parts of the writer refuse an inode with; the writer adds the inode's path."""

from __future__ import annotations


class Unfit(ValueError):
    """An inode has what an EROFS image cannot hold; the text says what."""
