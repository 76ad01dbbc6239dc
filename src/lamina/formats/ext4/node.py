"""Inodes of a filesystem that layers are applied to, in memory."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from lamina.formats.ext4.layout import MAX_LINKS
from lamina.formats.ext4.runs import Run

_NONE: Mapping[bytes, bytes] = MappingProxyType({})


@dataclass(slots=True, eq=False)
class Directory:
    """What only a directory has.

    Attributes:
        parent: where it is; the root is in itself.
        children: names and what they are of.
        changed: names that were put or removed since the directory was written, in order.
        noted: names that entries of the current layer have put there.
        names: in each block as it was written.
        leaves: of an index: the first hash of each block of names, and which that is, ascending;
            empty without an index.
        nodes: of an index: blocks between its root and `leaves`.
        runs: the blocks, in order.
    """

    parent: Node
    children: dict[bytes, Node] = field(default_factory=dict)
    changed: dict[bytes, None] = field(default_factory=dict)
    noted: set[bytes] = field(default_factory=set)
    names: list[list[bytes]] = field(default_factory=list)
    leaves: list[tuple[int, int]] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Node:
    """A file of any type. The same object under several names is a hard link.

    Attributes:
        mode: type and permissions, as in `st_mode`.
        mtime: nanoseconds since the epoch.
        atime: the same.
        rdev: `os.makedev` number of a device.
        size: bytes of a regular file.
        target: what a symbolic link points to.
        xattrs: full names (`b"user.a"`) and values, those only that there is place for.
        links: names; of a directory, those in it that `..` adds, too. 0: it is gone.
        number: of the inode; 0 as long as it has none.
        map: what is in the inode in place of blocks' numbers, 60 bytes, if that is not made of
            the above.
        blocks: runs of data, and of the extents' tree.
        xattr_block: the block that attributes are in; 0 without.
        inline: attributes in the inode.
        directory: set if it is one.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    atime: int = 0
    rdev: int = 0
    size: int = 0
    target: bytes = b""
    xattrs: Mapping[bytes, bytes] = field(default_factory=lambda: _NONE)
    links: int = 0
    number: int = 0
    map: bytes = b""
    blocks: list[Run] | None = None
    xattr_block: int = 0
    inline: bytes = b""
    directory: Directory | None = None

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)

    @property
    def is_regular(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def nlink(self) -> int:
        """What the inode says of its links: of directories, 1 where they are too many."""
        return 1 if self.directory and self.links >= MAX_LINKS else self.links

    def all_runs(self) -> list[Run]:
        """Return all blocks that it has."""
        runs = list(self.blocks or ())
        if self.directory:
            runs += self.directory.runs
        if self.xattr_block:
            runs.append((self.xattr_block, 1))
        return runs


def new_directory(node: Node, parent: Node | None = None) -> Node:
    """Make an empty directory of a node; without a parent, the root."""
    node.directory = Directory(parent or node)
    node.links = 2
    return node
