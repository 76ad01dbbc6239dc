"""The first pass over a tree: every inode once, checked, with its links counted."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from lamina.errors import InvalidArgument
from lamina.formats.erofs import chunks
from lamina.formats.erofs.directories import DOTS, directory_size, sorted_names
from lamina.formats.erofs.layout import (
    EROFS_INODE_CHUNK_BASED,
    EROFS_INODE_FLAT_PLAIN,
    FILE_TYPES,
    MAJOR_BITS,
    MAX_ID,
    MAX_SIZE,
    MAX_TARGET,
    MINOR_BITS,
    SECOND,
    encode_rdev,
)
from lamina.formats.erofs.tree import BLOCK, Inode
from lamina.formats.erofs.unfit import Unfit
from lamina.formats.erofs.xattrs import NO_XATTRS, XattrSet, XattrTable

_MAX_SECONDS = 1 << 63


@dataclass(slots=True, eq=False)
class Node:
    """An inode on its way into an image.

    Attributes:
        inode: as given.
        parent: the directory that has its first name; None for the root.
        name: that name.
        file_type: EROFS_FT_*.
        nlink: names that it has; of a directory, those that its subdirectories have for it too.
        names: of a directory, in order and with the two dots.
        size: bytes of data.
        layout: how data is found: EROFS_INODE_FLAT_PLAIN, FLAT_INLINE or CHUNK_BASED.
        u: what the inode says of it: its first block, the format of its chunks, or a device number.
        xattrs: its attributes.
        nid: its place, in the second pass.
    """

    inode: Inode
    parent: Node | None
    name: bytes
    file_type: int
    nlink: int = 1
    names: Sequence[bytes] = ()
    size: int = 0
    layout: int = EROFS_INODE_FLAT_PLAIN
    u: int = 0
    xattrs: XattrSet = NO_XATTRS
    nid: int = 0

    @property
    def path(self) -> bytes:
        """One of its names, from the root on."""
        parts: list[bytes] = []
        node = self
        while node.parent is not None:
            parts.append(node.name)
            node = node.parent
        return b"/" + b"/".join(reversed(parts))


class Survey:
    """The nodes of a tree, the children of each directory together.

    Attributes:
        nodes: of each inode.
        xattrs: the attributes that they have.
    """

    def __init__(self, root: Inode, devices: Sequence[range], addresses: Sequence[int]) -> None:
        """Take a tree up.

        Args:
            root: where it begins.
            devices: bytes that can hold data: of the image, then of each extra device.
            addresses: block by which plain files know the first of each extra device; 0 for none.

        Raises:
            InvalidArgument: an image cannot hold it; or it is no tree.
        """
        self.nodes: dict[Inode, Node] = {}
        self.xattrs = XattrTable()
        self._devices = devices
        self._addresses = addresses
        if not root.is_directory:
            raise _refused(b"/", "the root must be a directory")
        waiting = [self._add(root, None, b"")]
        while waiting:
            waiting += reversed(self._add_children(waiting.pop()))

    def _add_children(self, directory: Node) -> list[Node]:
        """Add what a directory has; return those that are directories."""
        found = []
        children = directory.inode.children
        for name in directory.names:
            if name in DOTS:
                continue
            inode = children[name]
            node = self.nodes.get(inode)
            if node is None:
                node = self._add(inode, directory, name)
                if node.names:
                    found.append(node)
            elif node.names:
                where = os.fsdecode(node.path)
                path = b"%s/%s" % (directory.path.rstrip(b"/"), name)
                raise _refused(path, f'this directory is at "{where}" already')
            else:
                node.nlink += 1
        directory.nlink += len(found)
        return found

    def _add(self, inode: Inode, parent: Node | None, name: bytes) -> Node:
        node = Node(inode, parent, name, FILE_TYPES.get(stat.S_IFMT(inode.mode), 0))
        try:
            self._describe(node)
        except Unfit as error:
            raise _refused(node.path, str(error)) from error
        self.nodes[inode] = node
        return node

    def _describe(self, node: Node) -> None:
        """Check an inode, and settle what does not depend on its place."""
        inode = node.inode
        _check_numbers(inode, node.file_type)
        kind = stat.S_IFMT(inode.mode)
        if kind == stat.S_IFREG:
            self._describe_data(node)
        elif kind == stat.S_IFDIR:
            node.names = sorted_names(inode.children)
            node.size = directory_size(node.names)
            node.nlink = 2
        elif kind == stat.S_IFLNK:
            _check_target(inode.target)
            node.size = len(inode.target)
        elif kind in {stat.S_IFCHR, stat.S_IFBLK}:
            node.u = _device_number(inode.rdev)
        if inode.xattrs:
            node.xattrs = self.xattrs.add(inode.xattrs)

    def _describe_data(self, node: Node) -> None:
        inode = node.inode
        if not 0 <= inode.size <= MAX_SIZE:
            raise Unfit(f"its size is {inode.size}")
        chunks.check_extents(inode.extents, inode.size, self._devices)
        node.size = inode.size
        merged = chunks.merge_extents(inode.extents)
        run = chunks.plain_run(merged)
        if run is not None and (not run.device or self._addresses[run.device - 1]):
            first = self._addresses[run.device - 1] if run.device else 0
            node.u = first + run.offset // BLOCK
            return
        node.layout = EROFS_INODE_CHUNK_BASED
        node.u = chunks.chunk_format(chunks.chunk_bits(merged, inode.size))


def _check_numbers(inode: Inode, file_type: int) -> None:
    if not file_type or inode.mode >> 16:
        raise Unfit(f"its mode is {inode.mode:#o}")
    if not (0 <= inode.uid <= MAX_ID and 0 <= inode.gid <= MAX_ID):
        raise Unfit(f"its owner is {inode.uid}:{inode.gid}")
    if not -_MAX_SECONDS <= inode.mtime // SECOND < _MAX_SECONDS:
        raise Unfit(f"its time is {inode.mtime} ns")


def _check_target(target: bytes) -> None:
    if not 0 < len(target) <= MAX_TARGET or b"\0" in target:
        raise Unfit(f"no link can lead to {target[:80]!r} ({len(target)} bytes)")


def _device_number(rdev: int) -> int:
    major, minor = os.major(rdev), os.minor(rdev)
    if major >> MAJOR_BITS or minor >> MINOR_BITS:
        raise Unfit(f"Linux has no device {major}:{minor}")
    return encode_rdev(rdev)


def _refused(path: bytes, hint: str) -> InvalidArgument:
    return InvalidArgument("write to an EROFS image", os.fsdecode(path), hint=hint)
