"""The inodes of a bootstrap of version 6, and where they go.

All inodes are extended (64 bytes), each with its attributes behind it: shared ones there are none.
They follow each other in the order of the tree. A directory's last block, or a link's target, lies
beside its inode where both fit into one block; smaller inodes fill what that leaves of the block
before.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lamina.errors import InvalidArgument
from lamina.formats.erofs.directories import DOTS, directory_size, sorted_names
from lamina.formats.erofs.layout import (
    BLOCK_BITS,
    EROFS_CHUNK_FORMAT_INDEXES,
    EROFS_INODE_CHUNK_BASED,
    EROFS_INODE_FLAT_INLINE,
    EROFS_INODE_FLAT_PLAIN,
    EXTENDED_INODE,
    FILE_TYPES,
    INODE_SLOT,
    XATTR_ALIGNMENT,
    XATTR_HEADER,
    encode_rdev,
)
from lamina.formats.erofs.slots import Slots
from lamina.formats.erofs.tree import BLOCK
from lamina.formats.erofs.xattrs import MAX_XATTRS, encode_entry
from lamina.formats.rafs.layout import V6_CHUNK_ADDRESS, aligned
from lamina.formats.rafs.model import Inode

ROOT_NID = BLOCK // INODE_SLOT
"""Upstream leaves a block before the root, so that nothing has the number 0."""


@dataclass(slots=True, eq=False)
class Node:
    """An inode on its way into a bootstrap.

    Attributes:
        inode: as given.
        parent: the directory that has its first name; the root's is itself.
        nlink: names that it has; of a directory, those that its subdirectories have for it too.
        names: of a directory, in order and with the two dots.
        size: bytes of data.
        layout: EROFS_INODE_FLAT_PLAIN, FLAT_INLINE or CHUNK_BASED.
        u: its first block, the format of its chunks, or a device number.
        xattrs: what follows the inode.
        nid: its place.
    """

    inode: Inode
    parent: Node | None
    nlink: int
    names: Sequence[bytes]
    size: int
    layout: int
    u: int
    xattrs: bytes
    nid: int = 0

    @property
    def file_type(self) -> int:
        """EROFS_FT_*."""
        return FILE_TYPES[stat.S_IFMT(self.inode.mode)]

    @property
    def xattr_icount(self) -> int:
        """What the inode says of its attributes."""
        return (len(self.xattrs) - XATTR_HEADER.size) // XATTR_ALIGNMENT + 1 if self.xattrs else 0

    @property
    def own_blocks(self) -> int:
        """How many blocks of its own a directory or a link has."""
        if self.layout == EROFS_INODE_CHUNK_BASED:
            return 0
        return (self.size if self.layout == EROFS_INODE_FLAT_INLINE else self.size + BLOCK - 1) // (
            BLOCK
        )


def collect(root: Inode, chunk_size: int) -> dict[Inode, Node]:
    """Return the nodes of a tree, the children of each directory together.

    Raises:
        InvalidArgument: a bootstrap cannot hold what an inode has.
    """
    nodes = {root: _node(root, None, b"/", chunk_size)}
    waiting = [nodes[root]]
    while waiting:
        directory = waiting.pop()
        below = []
        for name in directory.names:
            if name in DOTS:
                continue
            child = directory.inode.children[name]
            node = nodes.get(child)
            if node is not None:
                node.nlink += 1
                continue
            node = nodes[child] = _node(child, directory, name, chunk_size)
            if child.is_directory:
                below.append(node)
        directory.nlink += len(below)
        waiting += reversed(below)
    return nodes


def _node(inode: Inode, parent: Node | None, name: bytes, chunk_size: int) -> Node:
    names: Sequence[bytes] = ()
    size, layout, u = 0, EROFS_INODE_FLAT_PLAIN, 0
    if inode.is_regular:
        size, layout = inode.size, EROFS_INODE_CHUNK_BASED
        u = EROFS_CHUNK_FORMAT_INDEXES | _chunk_bits(inode, chunk_size)
    elif inode.is_directory:
        names = sorted_names(inode.children)
        size = directory_size(names)
    elif stat.S_ISLNK(inode.mode):
        size = len(inode.target)
    elif inode.rdev:
        u = encode_rdev(inode.rdev)
    nlink = 2 if inode.is_directory else 1
    return Node(inode, parent, nlink, names, size, layout, u, _xattrs(inode.xattrs, name))


def _chunk_bits(inode: Inode, chunk_size: int) -> int:
    """Return the binary logarithm, in blocks, of what the kernel takes for a chunk of a file.

    Where all chunks follow each other on a device, they are one to it.
    """
    bits = chunk_size.bit_length() - 1
    if inode.size > chunk_size and _is_one_run(inode, chunk_size):
        bits = (inode.size - 1).bit_length()
    return bits - BLOCK_BITS


def _is_one_run(inode: Inode, chunk_size: int) -> bool:
    first = inode.chunks[0].chunk
    return all(
        chunk.blob == first.blob and chunk.uncompressed_offset == first.uncompressed_offset + offset
        for offset, chunk in inode.chunks
    )


def _xattrs(xattrs: Mapping[bytes, bytes], name: bytes) -> bytes:
    if not xattrs:
        return b""
    entries = b"".join([encode_entry(key, xattrs[key]) for key in sorted(xattrs)])
    if len(entries) > MAX_XATTRS:
        hint = f"its attributes have {len(entries)} bytes, over {MAX_XATTRS}"
        raise InvalidArgument("write to a RAFS bootstrap", os.fsdecode(name), hint=hint)
    return XATTR_HEADER.pack(0, 0) + entries


def addresses_offset(node: Node) -> int:
    """Return where a file's chunks are, in bytes from its inode."""
    return aligned(EXTENDED_INODE.size + len(node.xattrs), V6_CHUNK_ADDRESS.size)


class Placement:
    """Gives nodes their `nid` and layout, and directories and links their blocks.

    Attributes:
        with_blocks: those that have blocks of their own, in order.
        blocks: block where all ends.
    """

    def __init__(self, nodes: Sequence[Node], meta_block: int) -> None:
        """Place nodes, the root first; `meta_block` is the block from which nids count."""
        self._origin = meta_block * BLOCK
        self._slots = Slots(self._origin + ROOT_NID * INODE_SLOT)
        for node in nodes:
            self._place(node)
        self.with_blocks = [node for node in nodes if node.own_blocks]
        self.blocks = aligned(self._slots.end, BLOCK) // BLOCK
        for node in self.with_blocks:
            node.u = self.blocks
            self.blocks += node.own_blocks

    def _place(self, node: Node) -> None:
        size = EXTENDED_INODE.size + len(node.xattrs)
        in_one_block = False
        if node.layout == EROFS_INODE_CHUNK_BASED:
            size = addresses_offset(node) + V6_CHUNK_ADDRESS.size * len(node.inode.chunks)
        elif (last := node.size % BLOCK) and size + last <= BLOCK:
            node.layout = EROFS_INODE_FLAT_INLINE
            size += last
            in_one_block = True
        at = self._slots.take(aligned(size, INODE_SLOT), in_one_block=in_one_block)
        node.nid = (at - self._origin) // INODE_SLOT
