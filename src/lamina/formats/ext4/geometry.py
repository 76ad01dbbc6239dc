"""Where the metadata of a filesystem lies: all of it in front of all data.

    block 0     superblock, at byte 1024
    block 1     group descriptors
                block bitmaps, one block for each group, in an order of their own
                inode bitmaps, one block for each group
                inode tables, likewise
                data

Only what is used of that is ever written: a device without data reads as zeros, and flags of the
group descriptors say so. There are no copies of superblock and descriptors.

Next to the descriptors lie the block bitmaps of high groups, which hardly ever change. It is
overlaybd-apply that needs that: it writes superblock and descriptors past its buffer, whose blocks
have 128 KiB, and then the buffer, with the old ones, if it changed anything else in them.
"""

from __future__ import annotations

from typing import NamedTuple

from lamina.errors import InvalidArgument
from lamina.formats.ext4.layout import (
    BLOCK,
    BLOCKS_PER_GROUP,
    DESCRIPTORS_PER_BLOCK,
    INODES_PER_BLOCK,
)

MIN_SIZE = 1 << 20
"""Bytes of a device."""
MAX_SIZE = 16 << 40
"""Bytes of a device; of the last block of so many, nothing is used."""
_MAX_BLOCKS = (1 << 32) - 1
_MAX_INODES = 1 << 24
_BLOCKS_PER_INODE = 4
_MIN_LAST_GROUP = 256


class Geometry(NamedTuple):
    """Places, in blocks.

    Attributes:
        blocks: of the filesystem.
        groups: that these are.
        inodes_per_group: a multiple of 16.
        block_bitmaps: first of them.
        inode_bitmaps: first of them.
        inode_tables: first of them.
        table_blocks: of the inode table of a group.
        data: first block that is no metadata.
    """

    blocks: int
    groups: int
    inodes_per_group: int
    block_bitmaps: int
    inode_bitmaps: int
    inode_tables: int
    table_blocks: int
    data: int

    def block_bitmap(self, group: int) -> int:
        """Return the block of the block bitmap of a group.

        They descend, but for that of the last group, which is always written: it comes last.
        """
        return self.block_bitmaps + (self.groups - 2 - group) % self.groups

    @property
    def inodes(self) -> int:
        """Number of all inodes, the reserved ones included."""
        return self.groups * self.inodes_per_group

    @property
    def log_groups_per_flex(self) -> int:
        """All groups are one flex group."""
        return max((self.groups - 1).bit_length(), 4)


def geometry(size: int) -> Geometry:
    """Return where all is on a device of so many bytes.

    Raises:
        InvalidArgument: they are less than 1 MiB or more than 16 TiB.
    """
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise InvalidArgument("make ext4", f"{size} bytes", hint="from 1 MiB to 16 TiB")
    blocks = min(size // BLOCK, _MAX_BLOCKS)
    groups, rest = divmod(blocks, BLOCKS_PER_GROUP)
    if groups and rest < _MIN_LAST_GROUP:
        # e2fsck takes a group of a few blocks for damage.
        blocks -= rest
    groups = -(-blocks // BLOCKS_PER_GROUP)
    # There are fewer inodes than blocks, so that the tables take a 64th of the device at most.
    inodes = min(blocks // _BLOCKS_PER_INODE, _MAX_INODES)
    per_group = -(-inodes // (groups * INODES_PER_BLOCK)) * INODES_PER_BLOCK
    table = per_group // INODES_PER_BLOCK
    block_bitmaps = 1 + -(-groups // DESCRIPTORS_PER_BLOCK)
    inode_bitmaps = block_bitmaps + groups
    inode_tables = inode_bitmaps + groups
    data = inode_tables + groups * table
    return Geometry(
        blocks, groups, per_group, block_bitmaps, inode_bitmaps, inode_tables, table, data
    )
