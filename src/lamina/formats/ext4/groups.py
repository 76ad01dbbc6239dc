"""The descriptors of groups, and the superblock, which sums them up."""

from __future__ import annotations

from lamina.formats.ext4.geometry import Geometry
from lamina.formats.ext4.inodes import Inodes
from lamina.formats.ext4.layout import (
    BLOCK,
    DESCRIPTOR,
    DESCRIPTORS_PER_BLOCK,
    EXT4_BG_BLOCK_UNINIT,
    EXT4_BG_INODE_UNINIT,
    EXT4_BG_INODE_ZEROED,
    SUPERBLOCK_AT,
    Superblock,
    crc16,
)
from lamina.formats.ext4.name_hash import HASH_SEED
from lamina.formats.ext4.space import Space


class Groups:
    """What describes blocks and inodes."""

    def __init__(self, places: Geometry, space: Space, inodes: Inodes, uuid: bytes) -> None:
        self._places = places
        self._space = space
        self._inodes = inodes
        self._uuid = uuid
        self._seed = crc16(0xFFFF, uuid)

    def first_block(self) -> bytes:
        """Return the block that has the superblock."""
        superblock = Superblock(
            self._places.inodes,
            self._places.blocks,
            sum(self._space.free),
            sum(self._inodes.free),
            self._places.inodes_per_group,
            self._places.log_groups_per_flex,
            self._uuid,
            HASH_SEED,
        )
        return (bytes(SUPERBLOCK_AT) + superblock.pack()).ljust(BLOCK, b"\0")

    def block(self, index: int) -> bytes:
        """Return a block of descriptors."""
        first = index * DESCRIPTORS_PER_BLOCK
        end = min(first + DESCRIPTORS_PER_BLOCK, self._places.groups)
        return b"".join(map(self._descriptor, range(first, end))).ljust(BLOCK, b"\0")

    def _descriptor(self, group: int) -> bytes:
        places, space, inodes = self._places, self._space, self._inodes
        flags = EXT4_BG_INODE_ZEROED
        if not space.bitmaps.exists(group):
            flags |= EXT4_BG_BLOCK_UNINIT
        if not inodes.bitmaps.exists(group):
            flags |= EXT4_BG_INODE_UNINIT
        data = DESCRIPTOR.pack(
            places.block_bitmap(group),
            places.inode_bitmaps + group,
            places.inode_tables + group * places.table_blocks,
            space.free[group],
            inodes.free[group],
            inodes.directories[group],
            flags,
            0,  # bg_exclude_bitmap_lo
            0,  # bg_block_bitmap_csum_lo
            0,  # bg_inode_bitmap_csum_lo
            places.inodes_per_group - inodes.used[group],
            0,  # bg_checksum: what follows is the sum of all before it
        )[:-2]
        checksum = crc16(crc16(self._seed, group.to_bytes(4, "little")), data)
        return data + checksum.to_bytes(2, "little")
