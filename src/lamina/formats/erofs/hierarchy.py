"""All that an image has, from its root on: proven to be a tree, and within bounds."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from lamina.formats.erofs.attributes import Attribute, read_attributes, read_shared
from lamina.formats.erofs.entries import Entry, entries
from lamina.formats.erofs.inodes import Node, parse_node
from lamina.formats.erofs.layout import MAX_TARGET
from lamina.formats.erofs.metadata import damaged
from lamina.formats.erofs.runs import merged, runs, table_size
from lamina.formats.erofs.tree import HOLE, Extent, Inode
from lamina.formats.erofs.volume import Volume

MAX_NAMES = 1 << 22
"""In all directories: what a machine can hold as objects, and far beyond any image of a container;
those of a distribution with all its programs have some 100,000."""
MAX_EXTENTS = 1 << 22
"""Of all files, for the same reason: chunks of 1 MiB then make 4 TiB."""
MAX_PATH = 4095
"""Bytes: PATH_MAX without its NUL, as tar archives are bounded too; so at most 2047 directories
are in each other."""


class Found(NamedTuple):
    """A name of an image.

    Attributes:
        path: from the root on, which is `/`.
        name: its last part; the root's is empty.
        parent: the directory that has it; the root's is itself.
        node: the inode.
    """

    path: bytes
    name: bytes
    parent: Node
    node: Node


class Hierarchy:
    """The names of an image, gone through once.

    No two inodes of an image share a byte of what describes them, so that all they have together is
    less than the image: a sum that grows over it stops an image which is made to be read for ever.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._bytes_left = volume.metadata.size
        self._names_left = MAX_NAMES
        self._extents_left = MAX_EXTENTS
        self._shared: dict[int, Attribute] = {}

    def walk(self) -> Iterator[Found]:
        """Yield every name: each directory before its entries, which come together.

        Raises:
            FormatError: an inode or a directory is damaged, or the directories are no tree.
        """
        root = parse_node(self._volume, self._volume.superblock.rootnid)
        seen = {root.nid}
        yield Found(b"/", b"", root, root)
        waiting = [Found(b"", b"", root, root)]
        while waiting:
            directory = waiting.pop()
            path = b"%s/%s" % (directory.path, directory.name) if directory.name else b""
            below = []
            for entry in self._names(directory):
                node = self._child(entry, path)
                if node.is_directory:
                    if node.nid in seen:
                        got = f"{entry.name!r} for inode {node.nid} once more"
                        raise damaged(entry.at, "directories of one name each", got)
                    seen.add(node.nid)
                    # Not its path: a path in common is one object while they wait.
                    below.append(Found(path, entry.name, directory.node, node))
                yield Found(b"%s/%s" % (path, entry.name), entry.name, directory.node, node)
            waiting += reversed(below)

    def tree(self) -> Inode:
        """Return the root of a tree of all.

        Raises:
            FormatError: the image is damaged anywhere, or its directories are no tree.
        """
        made: dict[int, Inode] = {}
        for _path, name, parent, node in self.walk():
            inode = made.get(node.nid)
            if inode is None:
                inode = made[node.nid] = self._inode(node)
            if name:
                made[parent.nid].children[name] = inode
        return made[self._volume.superblock.rootnid]

    def _names(self, found: Found) -> Iterator[Entry]:
        """Yield the entries of a directory but for `.` and `..`, which must be right."""
        directory = found.node
        self._spend(directory.size, directory.at)
        dots = {b".": directory.nid, b"..": found.parent.nid}
        missing = {b".."} if directory.dot_omitted else set(dots)
        for entry in entries(self._volume, directory):
            if entry.name not in dots:
                yield entry
                continue
            missing.discard(entry.name)
            if entry.nid != dots[entry.name]:
                expected = f"inode {dots[entry.name]} for {entry.name!r}"
                raise damaged(entry.at, expected, f"inode {entry.nid}")
        if missing:
            raise damaged(directory.at, "a directory with '.' and '..'", "one without")

    def _child(self, entry: Entry, path: bytes) -> Node:
        """Return the inode of an entry in the directory at a path."""
        if len(path) + 1 + len(entry.name) > MAX_PATH:
            got = f"{len(path) + 1 + len(entry.name)} bytes"
            raise damaged(entry.at, f"paths of at most {MAX_PATH} bytes", got)
        self._names_left -= 1
        if self._names_left < 0:
            raise damaged(entry.at, f"at most {MAX_NAMES} names", "more")
        node = parse_node(self._volume, entry.nid)
        if entry.file_type and entry.file_type != node.file_type:
            expected = f"type {node.file_type} for {entry.name!r}, as its inode says"
            raise damaged(entry.at, expected, entry.file_type)
        return node

    def _inode(self, node: Node) -> Inode:
        self._spend(node.tail_at - node.xattrs_at, node.at)
        inode = Inode(
            node.mode,
            node.uid,
            node.gid,
            node.mtime,
            node.rdev,
            xattrs=read_attributes(self._volume, node, self._shared_attribute),
        )
        if node.is_regular:
            inode.size = node.size
            inode.extents = self._extents(node)
        elif node.is_symlink:
            self._spend(node.size, node.at)
            inode.target = read_target(self._volume, node)
        return inode

    def _extents(self, node: Node) -> tuple[Extent, ...]:
        self._spend(table_size(self._volume, node), node.at)
        extents = merged(runs(self._volume, node, 0, node.size))
        found = tuple(islice(extents, self._extents_left + 1))
        self._extents_left -= len(found)
        if self._extents_left < 0:
            raise damaged(node.at, f"at most {MAX_EXTENTS} extents", "more")
        return found

    def _shared_attribute(self, id: int) -> Attribute:
        found = self._shared.get(id)
        if found is None:
            found = self._shared[id] = read_shared(self._volume, id)
            at = self._volume.superblock.xattr_blkaddr << self._volume.block_bits
            self._spend(sum(map(len, found)), at)
        return found

    def _spend(self, size: int, at: int) -> None:
        """Count bytes that describe one inode only.

        Args:
            size: so many.
            at: byte of the inode, for errors.
        """
        self._bytes_left -= size
        if self._bytes_left < 0:
            expected = f"inodes that have at most {self._volume.metadata.size} bytes together"
            raise damaged(at, expected, f"one with {size} more")


def read_target(volume: Volume, symlink: Node) -> bytes:
    """Return what a symbolic link points to.

    Raises:
        FormatError: it is damaged.
    """
    if not 0 < symlink.size <= MAX_TARGET:
        raise damaged(symlink.at, f"a target of 1 to {MAX_TARGET} bytes", f"{symlink.size} bytes")
    parts = []
    for length, device, offset in runs(volume, symlink, 0, symlink.size):
        if device:
            got = "a hole" if device == HOLE else f"one on device {device}"
            raise damaged(symlink.at, "a target in the image itself", got)
        parts.append(volume.metadata.read(offset, length, "target"))
    target = b"".join(parts)
    if b"\0" in target:
        raise damaged(symlink.at, "a target without NUL", target[:80])
    return target
