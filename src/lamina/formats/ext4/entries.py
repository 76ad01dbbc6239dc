"""The entries of an archive, made in the tree of all layers as extraction makes them in files.

Deletions are carried out: `.wh.NAME` removes what is there, `.wh..wh..opq` all in its directory
that this archive has not put there. A later entry replaces an earlier one; only a directory stays
one, with what is in it. The entry of the root itself is passed over.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Set as AbstractSet

from lamina.errors import FormatError, ResourceExhausted
from lamina.formats.ext4 import acl
from lamina.formats.ext4.data import Data
from lamina.formats.ext4.layout import MAX_FAST_TARGET, MAX_TARGET
from lamina.formats.ext4.node import Node, new_directory
from lamina.formats.ext4.tree import Tree, inside
from lamina.formats.ext4.xattrs import split_name, store
from lamina.formats.tar import Entry, TarReader, Type
from lamina.formats.tar.layer import (
    OPAQUE_MARKER,
    check_device,
    check_owner,
    clean,
    deleted_name,
    times,
)

_HIDDEN = b"trusted.overlay."
"""Attributes that steer an overlay, as whose lower layer the filesystem is mounted."""
_DEVICES = {Type.CHAR: stat.S_IFCHR, Type.BLOCK: stat.S_IFBLK}
_MAX_WARNINGS = 8
_MAX_KEPT = 256 << 20
"""Bytes of attributes and targets of links, of all layers."""


class Entries:
    """Makes the entries of one archive after the other.

    Attributes:
        tree: what they make.
        warnings: what was left out, as sentences; the first few only.
    """

    def __init__(self, data: Data, max_entries: int) -> None:
        """Begin with an empty root; bound the members of an archive."""
        self.tree = Tree(new_directory(Node(stat.S_IFDIR | 0o755)), self._directory_implied)
        self.warnings: list[str] = []
        self._data = data
        self._max_entries = max_entries
        self._first: AbstractSet[bytes] = frozenset()
        self._left_out: AbstractSet[bytes] = frozenset()
        self._mtime = 0
        self._kept = 0
        self._makers = {
            Type.REGULAR: self._regular,
            Type.DIRECTORY: self._directory,
            Type.SYMLINK: self._symlink,
            Type.HARD_LINK: self._hard_link,
            Type.CHAR: self._node,
            Type.BLOCK: self._node,
            Type.FIFO: self._node,
        }

    def run(
        self, reader: TarReader, first: AbstractSet[bytes], left_out: AbstractSet[bytes]
    ) -> None:
        """Make all entries of an archive.

        Args:
            reader: read to the end of the archive.
            first: paths without leading slashes whose data goes where that is reserved.
            left_out: such paths whose entries are passed over.

        Raises:
            FormatError: the archive is damaged, cut off, or asks for what cannot be.
            ResourceExhausted: a limit is exceeded, or the device is full.
        """
        self.warnings = []
        self._reader = reader
        self._first = first
        self._left_out = left_out
        self._spares = bool(inside(self.tree.root).children)
        self.tree.begin()
        count = 0
        while (entry := reader.next()) is not None:
            self.tree.at = reader.offset
            count += 1
            if count > self._max_entries:
                hint = f"it has more than {self._max_entries} entries"
                raise ResourceExhausted("unpack layer", hint=hint)
            self._extract(entry)

    def _extract(self, entry: Entry) -> None:
        self._path = clean(entry.name)
        self._parent, _, base = self._path.rpartition(b"/")
        if not base or self._path in self._left_out:
            return
        at = self.tree.at
        check_owner(entry, at)
        self._atime, self._mtime = times(entry)
        parent = self.tree.make(self._parent)
        if base == OPAQUE_MARKER:
            if self._spares:
                self.tree.clear(parent)
            return
        deleted = deleted_name(base, at)
        if deleted is not None:
            self.tree.remove(parent, deleted)
            return
        make = self._makers.get(entry.type)
        if make is None:
            got = repr(entry.type)
            raise FormatError("tar", at, expected="a type that layers have", got=got)
        parent = make(entry, parent, base)
        if self._spares:
            self.tree.note(parent, base)

    def _regular(self, entry: Entry, parent: Node, base: bytes) -> Node:
        node = self._new(entry, stat.S_IFREG)
        self._data.store(node, self._reader, entry, first=self._path in self._first)
        return self._put(parent, base, node)

    def _directory(self, entry: Entry, parent: Node, base: bytes) -> Node:
        old = inside(parent).children.get(base)
        if old is not None and old.directory:
            self._update(old, entry)
            return parent
        parent = self._clear(parent, base)
        return self._put(parent, base, new_directory(self._new(entry, stat.S_IFDIR), parent))

    def _symlink(self, entry: Entry, parent: Node, base: bytes) -> Node:
        target = entry.linkname
        if not 0 < len(target) <= MAX_TARGET:
            expected = f"a target of 1 to {MAX_TARGET} bytes"
            raise FormatError("tar", self.tree.at, expected=expected, got=f"{len(target)} bytes")
        node = self._new(entry, stat.S_IFLNK)
        node.mode = stat.S_IFLNK | 0o777
        node.target = target
        self._keep(len(target))
        if len(target) > MAX_FAST_TARGET:
            self._data.store_target(node, target)
        return self._put(parent, base, node)

    def _hard_link(self, entry: Entry, parent: Node, base: bytes) -> Node:
        self.tree.remove(parent, base)
        above, _, name = entry.linkname.rstrip(b"/").rpartition(b"/")
        node = inside(self.tree.find(above)).children.get(name)
        if node is None or node.directory:
            expected = "a link to something that exists and is no directory"
            raise FormatError("tar", self.tree.at, expected=expected, got=repr(entry.linkname))
        self._update(node, entry)
        return self._put(self.tree.make(self._parent), base, node)

    def _node(self, entry: Entry, parent: Node, base: bytes) -> Node:
        node = self._new(entry, _DEVICES.get(entry.type, stat.S_IFIFO))
        if entry.type in _DEVICES:
            check_device(entry, self.tree.at)
            node.rdev = os.makedev(entry.devmajor, entry.devminor)
        return self._put(parent, base, node)

    def _put(self, parent: Node, base: bytes, node: Node) -> Node:
        """Put an inode into its directory, and return that."""
        parent = self._clear(parent, base)
        self.tree.put(parent, base, node)
        return parent

    def _clear(self, parent: Node, base: bytes) -> Node:
        """Remove what is in the way, and find the directory anew: the way to it may be gone."""
        if base not in inside(parent).children:
            return parent
        self.tree.remove(parent, base)
        return self.tree.make(self._parent)

    def _new(self, entry: Entry, kind: int) -> Node:
        mode = kind | entry.mode
        node = Node(mode, entry.uid, entry.gid, self._mtime, self._atime)
        if entry.xattrs:
            self._add_xattrs(node, entry)
        return node

    def _update(self, node: Node, entry: Entry) -> None:
        """Let an entry say anew what it says of an inode that is there."""
        node.uid, node.gid, node.mtime, node.atime = entry.uid, entry.gid, self._mtime, self._atime
        if not node.is_link:
            node.mode = stat.S_IFMT(node.mode) | entry.mode
        if entry.xattrs:
            self._add_xattrs(node, entry)
        self.tree.changed[node] = None

    def _add_xattrs(self, node: Node, entry: Entry) -> None:
        left_out = []
        added = dict(node.xattrs)
        for name, value in entry.xattrs.items():
            if not _may_have(node, name):
                left_out.append(name)
                continue
            if name in {acl.ACCESS, acl.DEFAULT} and acl.parse(value) is None:
                got = repr(value[:80])
                raise FormatError("tar", self.tree.at, expected="a POSIX ACL", got=got)
            added[name] = value
        too_large = store(added, node.mode).left_out
        for name in too_large:
            del added[name]
        node.xattrs = added
        left_out += too_large
        self._keep(sum(len(name) + len(value) for name, value in added.items()))
        if left_out and len(self.warnings) < _MAX_WARNINGS:
            listed = ", ".join(map(os.fsdecode, left_out))
            self.warnings.append(f"attributes of {os.fsdecode(entry.name)} are left out: {listed}")

    def _keep(self, size: int) -> None:
        """Bound what is in memory of attributes and targets of links."""
        self._kept += size
        if self._kept > _MAX_KEPT:
            hint = f"attributes and links have more than {_MAX_KEPT >> 20} MiB"
            raise ResourceExhausted("unpack layer", hint=hint)

    def _directory_implied(self) -> Node:
        """Make a directory that no layer describes."""
        return Node(stat.S_IFDIR | 0o755, mtime=self._mtime, atime=self._mtime)


def _may_have(node: Node, name: bytes) -> bool:
    """Tell whether Linux would let a layer set an attribute."""
    if name.startswith(_HIDDEN) or split_name(name) is None:
        return False
    if name == acl.DEFAULT:
        return node.directory is not None or stat.S_ISDIR(node.mode)
    if name == acl.ACCESS:
        return not node.is_link
    return not name.startswith(b"user.") or node.is_regular or stat.S_ISDIR(node.mode)
