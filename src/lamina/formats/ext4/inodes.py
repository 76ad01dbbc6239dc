"""The numbers of inodes, and their records."""

from __future__ import annotations

import os
import stat
from array import array
from collections import deque

from lamina.errors import ResourceExhausted
from lamina.formats.ext4.bitmaps import Bitmaps
from lamina.formats.ext4.extents import NO_EXTENTS
from lamina.formats.ext4.geometry import Geometry
from lamina.formats.ext4.layout import (
    BLOCK,
    EXT4_EXTENTS_FL,
    EXT4_INDEX_FL,
    EXTRA_SIZE,
    FIRST_INODE,
    INODE,
    INODE_SIZE,
    INODES_PER_BLOCK,
    MAX_FAST_TARGET,
    ROOT_INODE,
    SECTOR,
)
from lamina.formats.ext4.node import Node
from lamina.formats.ext4.runs import Run, append

_SECOND = 1_000_000_000
_MAX_SECONDS = (1 << 34) - (1 << 31) - 1
"""What 34 bits can tell that begin as many seconds before 1970 as 32 bits do."""
_HALF = (1 << 32) - 1
_SECTORS_PER_BLOCK = BLOCK // SECTOR
_NO_INODE = bytes(INODE_SIZE)


class Inodes:
    """All inodes by number.

    Attributes:
        bitmaps: of all groups; the numbers are those of inodes, less 1.
        free: inodes of each group.
        directories: in each group.
        used: inodes of each group's table up to the last that ever was used.
        changed: blocks of the tables, counted over all groups, that have changed.
    """

    def __init__(self, places: Geometry) -> None:
        per_group = places.inodes_per_group
        self.bitmaps = Bitmaps(per_group, per_group)
        self.free = array("I", [per_group]) * places.groups
        self.directories = array("I", [0]) * places.groups
        self.used = array("I", [0]) * places.groups
        self.changed: set[int] = set()
        self._count = places.inodes
        self._per_group = per_group
        self._nodes: list[Node | None] = [None] * (FIRST_INODE - 1)
        self._holes: deque[int] = deque()
        self._fresh_holes = 0
        self._given: list[Run] = []
        self._freed: list[int] = []
        self._mark((0, FIRST_INODE - 1), used=True)

    def set_root(self, node: Node) -> None:
        """Give the root its number."""
        node.number = ROOT_INODE
        self._nodes[ROOT_INODE - 1] = node
        self.directories[0] += 1

    def begin_numbers(self) -> None:
        """Let numbers that this layer has freed be given to its new inodes."""
        self._freed.sort()
        for number in self._freed:
            self._mark((number - 1, 1), used=False)
        # Their blocks change in any case; those of holes that are older do not.
        self._holes.extendleft(reversed(self._freed))
        self._fresh_holes = len(self._freed)
        self._freed = []

    def number(self, node: Node) -> None:
        """Give an inode its number.

        Raises:
            ResourceExhausted: all inodes are used.
        """
        if self._fresh_holes:
            self._fresh_holes -= 1
            number = self._holes.popleft()
            self._nodes[number - 1] = node
        elif len(self._nodes) < self._count:
            self._nodes.append(node)
            number = len(self._nodes)
        elif self._holes:
            number = self._holes.popleft()
            self._nodes[number - 1] = node
        else:
            hint = f"the device has {self._count} inodes: choose a larger one"
            raise ResourceExhausted("write ext4", hint=hint)
        node.number = number
        append(self._given, number - 1, 1)
        if node.directory:
            self.directories[(number - 1) // self._per_group] += 1

    def give_back(self, node: Node) -> None:
        """Free the number of an inode."""
        index = node.number - 1
        self._nodes[index] = None
        if node.directory:
            self.directories[index // self._per_group] -= 1
        self._freed.append(node.number)
        node.number = 0

    def finish(self) -> None:
        """Mark the numbers that were given."""
        for run in self._given:
            self._mark(run, used=True)
        self._given = []

    def touch(self, node: Node) -> None:
        """Have an inode written anew."""
        self.changed.add((node.number - 1) // INODES_PER_BLOCK)

    def block(self, index: int) -> bytes:
        """Return a block of the tables, counted over all groups."""
        first = index * INODES_PER_BLOCK
        nodes = self._nodes[first : first + INODES_PER_BLOCK]
        records = [record(node) if node else _NO_INODE for node in nodes]
        return b"".join(records).ljust(BLOCK, b"\0")

    def _mark(self, run: Run, *, used: bool) -> None:
        for group, count in self.bitmaps.mark(*run, used=used):
            self.free[group] += -count if used else count
        start, length = run
        last = start + length - 1
        self.changed.update(range(start // INODES_PER_BLOCK, last // INODES_PER_BLOCK + 1))
        if used:
            group, index = divmod(last, self._per_group)
            self.used[group] = max(self.used[group], index + 1)
            for full in range(start // self._per_group, group):
                self.used[full] = self._per_group


def record(node: Node) -> bytes:
    """Return an inode as it is on disk."""
    mtime, mtime_extra = _time(node.mtime)
    atime, atime_extra = _time(node.atime)
    flags, size, map = _content(node)
    sectors = sum(length for _, length in node.all_runs()) * _SECTORS_PER_BLOCK
    return INODE.pack(
        node.mode,
        node.uid & 0xFFFF,
        size & _HALF,
        atime,
        mtime,  # i_ctime
        mtime,
        0,  # i_dtime
        node.gid & 0xFFFF,
        node.nlink,
        sectors & _HALF,
        flags,
        0,  # l_i_version
        map,
        0,  # i_generation
        node.xattr_block,
        size >> 32,
        0,  # i_obso_faddr
        sectors >> 32,
        0,  # l_i_file_acl_high
        node.uid >> 16,
        node.gid >> 16,
        0,  # l_i_checksum_lo
        0,
        EXTRA_SIZE,
        0,  # i_checksum_hi
        mtime_extra,  # i_ctime_extra
        mtime_extra,
        atime_extra,
        mtime,  # i_crtime
        mtime_extra,
        0,  # i_version_hi
        0,  # i_projid
        node.inline,
    )


def _content(node: Node) -> tuple[int, int, bytes]:
    """Return flags, size and map."""
    if node.directory:
        flags = EXT4_EXTENTS_FL | (EXT4_INDEX_FL if node.directory.leaves else 0)
        return flags, len(node.directory.names) * BLOCK, node.map
    if node.is_regular:
        return EXT4_EXTENTS_FL, node.size, node.map or NO_EXTENTS
    if node.is_link:
        slow = len(node.target) > MAX_FAST_TARGET
        return EXT4_EXTENTS_FL if slow else 0, len(node.target), node.map or node.target
    return 0, 0, _device(node.rdev) if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode) else b""


def _device(rdev: int) -> bytes:
    """Return a device's number in the first word if that has room for it, else in the second."""
    major, minor = os.major(rdev), os.minor(rdev)
    if major < 256 and minor < 256:
        return (major << 8 | minor).to_bytes(4, "little")
    encoded = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
    return bytes(4) + encoded.to_bytes(4, "little")


def _time(nanoseconds: int) -> tuple[int, int]:
    """Return the low bits of the seconds; and the high ones, with the nanoseconds."""
    seconds, rest = divmod(nanoseconds, _SECOND)
    if seconds < 1 << 31:
        return seconds, rest << 2
    seconds = min(seconds, _MAX_SECONDS)
    low = seconds & _HALF
    signed = low - (1 << 32) if low >> 31 else low
    return low, rest << 2 | (seconds - signed) >> 32 & 3
