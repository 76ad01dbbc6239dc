"""The second pass: each inode gets its nid, and what does not fit beside it gets its blocks.

Inodes follow each other in the order of the first pass. The tail of a directory or the target of a
link that stands beside its inode must not cross a block: where it would, the inode goes to the next
block, and smaller ones fill what is left of this one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from lamina.formats.erofs.chunks import chunk_count
from lamina.formats.erofs.layout import (
    CHUNK_INDEX,
    COMPACT_INODE,
    EROFS_CHUNK_FORMAT_BLKBITS_MASK,
    EROFS_FT_DIR,
    EROFS_FT_SYMLINK,
    EROFS_INODE_CHUNK_BASED,
    EROFS_INODE_FLAT_INLINE,
    EXTENDED_INODE,
    INODE_SLOT,
)
from lamina.formats.erofs.nodes import Node
from lamina.formats.erofs.slots import Slots
from lamina.formats.erofs.tree import BLOCK


def rounded(value: int, unit: int) -> int:
    """Return the next multiple of a unit that is not below a value."""
    return -(-value // unit) * unit


def common_mtime(nodes: Iterable[Node]) -> int:
    """Return the time that makes the most inodes compact: they have none of their own.

    One that is given in seconds after the superblock's is read from Linux 6.15 on only.
    """
    counts = Counter(node.inode.mtime for node in nodes if _fits_compact(node))
    return min(counts, key=lambda mtime: (-counts[mtime], mtime), default=0)


def _fits_compact(node: Node) -> bool:
    """Tell whether the smaller numbers of a compact inode can say all but the time."""
    inode = node.inode
    return not (inode.uid | inode.gid | node.nlink) >> 16 and not node.size >> 32


def is_compact(node: Node, epoch: int) -> bool:
    """Tell whether a compact inode loses nothing.

    Args:
        node: the inode.
        epoch: nanoseconds: what `common_mtime` returned.
    """
    return node.inode.mtime == epoch and _fits_compact(node)


def indexes_offset(inode_size: int, node: Node) -> int:
    """Return where the chunk indexes are, in bytes from the inode."""
    return rounded(inode_size + len(node.xattrs.body), CHUNK_INDEX.size)


class Placement:
    """Places of inodes and of blocks.

    Attributes:
        with_blocks: directories and links that have blocks of their own, in order.
        blocks: block where all ends.
    """

    def __init__(self, nodes: Iterable[Node], *, epoch: int, start: int, meta_block: int) -> None:
        """Place the nodes.

        Args:
            nodes: in the order wanted, the root first; their `nid`, `layout` and `u` are set.
            epoch: nanoseconds: the time of compact inodes.
            start: byte in the image where inodes may begin.
            meta_block: block from which nids count.
        """
        self._origin = meta_block * BLOCK
        # A nid becomes an inode number, and programs take entries of number 0 for deleted ones.
        self._slots = Slots(max(rounded(start, INODE_SLOT), self._origin + INODE_SLOT))
        self.with_blocks: list[Node] = []
        for node in nodes:
            self._place(
                node, COMPACT_INODE.size if is_compact(node, epoch) else EXTENDED_INODE.size
            )
            if node.file_type in {EROFS_FT_DIR, EROFS_FT_SYMLINK} and own_blocks(node):
                self.with_blocks.append(node)
        self.blocks = rounded(self._slots.end, BLOCK) // BLOCK
        for node in self.with_blocks:
            node.u = self.blocks
            self.blocks += own_blocks(node)

    def _place(self, node: Node, inode_size: int) -> None:
        size = inode_size + len(node.xattrs.body)
        in_one_block = False
        if node.layout == EROFS_INODE_CHUNK_BASED:
            bits = node.u & EROFS_CHUNK_FORMAT_BLKBITS_MASK
            size = indexes_offset(inode_size, node)
            size += CHUNK_INDEX.size * chunk_count(node.size, bits)
        elif node.file_type in {EROFS_FT_DIR, EROFS_FT_SYMLINK}:
            tail = node.size % BLOCK
            if tail and size + tail <= BLOCK:
                node.layout = EROFS_INODE_FLAT_INLINE
                size += tail
                in_one_block = True
        at = self._slots.take(rounded(size, INODE_SLOT), in_one_block=in_one_block)
        node.nid = (at - self._origin) // INODE_SLOT


def own_blocks(node: Node) -> int:
    """Return how many blocks of its own a directory or a link has."""
    if node.layout == EROFS_INODE_FLAT_INLINE:
        return node.size // BLOCK
    return rounded(node.size, BLOCK) // BLOCK
