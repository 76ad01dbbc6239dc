"""The directories of a layer: where each name is put, and those that are only implied."""

from __future__ import annotations

import stat
from collections.abc import Iterator

from lamina.errors import FormatError
from lamina.formats.erofs.layout import MAX_NAME
from lamina.formats.erofs.tree import Inode
from lamina.formats.estargz.toc import TocEntry, entry_error

MAX_PATH = 4095
NO_CHILDREN: dict[bytes, Inode] = {}
"""Of everything but directories; an empty dictionary of its own takes 64 bytes of each inode."""
_MAX_IMPLIED = 1 << 17
"""Directories without an entry: one name can ask for two thousand, each with a long path."""


class Directories:
    """All directories of a layer by their paths, which are clean and without a leading slash.

    Only these have an entry in a dictionary: whatever else there is is found in its directory.

    Attributes:
        root: with everything in it.
    """

    def __init__(self) -> None:
        self.root = Inode(stat.S_IFDIR | 0o755)
        self._paths = {b"": self.root}
        self._implied: set[bytes] = set()
        self._last = b"", self.root

    def put(self, index: int, entry: TocEntry, path: bytes, inode: Inode | None) -> Inode | None:
        """Give a path to an inode, None for a link that is put there later; return what had it.

        A directory that is there already keeps what is in it.

        Raises:
            FormatError: Linux can have no such path, or it leads through what is no directory.
        """
        if not path:
            self._put_root(index, entry, inode)
            return None
        base = path.rpartition(b"/")[2]
        if len(base) > MAX_NAME or len(path) > MAX_PATH or b"\0" in path:
            raise entry_error(index, entry, "name", "a path that Linux can have", len(path))
        children = self.parent(index, entry, path).children
        old = children.pop(base, None)
        if old is not None and old.is_directory:
            self._forget(index, entry, path, old, inode)
        if inode is not None:
            if inode.is_directory:
                self._paths[path] = inode
            children[base] = inode
        return old

    def find(self, path: bytes) -> Inode | None:
        """Return what has a path."""
        parent, _, base = path.rpartition(b"/")
        found = self._paths.get(path)
        if found is not None:
            return found
        directory = self._paths.get(parent)
        return directory.children.get(base) if directory else None

    def parent(self, index: int, entry: TocEntry, path: bytes) -> Inode:
        """Return the directory that a path is in; made if no entry has described it.

        Raises:
            FormatError: something else has its path, or those are too many.
        """
        above = path.rpartition(b"/")[0]
        if above == self._last[0]:
            return self._last[1]
        directory = self._paths.get(above)
        if directory is None:
            directory = self._imply(index, entry, above)
        self._last = above, directory
        return directory

    def implied(self) -> Iterator[tuple[bytes, Inode]]:
        """Yield the directories that no entry describes, with their paths; not the root."""
        return ((path, self._paths[path]) for path in self._implied)

    def _imply(self, index: int, entry: TocEntry, path: bytes) -> Inode:
        """Make a directory, and those above it that are missing."""
        missing: list[bytes] = []
        while path not in self._paths:
            missing.append(path)
            path = path.rpartition(b"/")[0]
        if len(self._implied) + len(missing) > _MAX_IMPLIED:
            expected = f"at most {_MAX_IMPLIED} directories without entry"
            raise entry_error(index, entry, "name", expected, entry.name[:200])
        directory = self._paths[path]
        for path in reversed(missing):
            base = path.rpartition(b"/")[2]
            if base in directory.children or len(base) > MAX_NAME:
                raise self._in_the_way(index, entry)
            below = self._paths[path] = Inode(stat.S_IFDIR | 0o755)
            self._implied.add(path)
            directory.children[base] = below
            directory = below
        return directory

    def _put_root(self, index: int, entry: TocEntry, inode: Inode | None) -> None:
        if inode is None or not inode.is_directory:
            raise entry_error(index, entry, "type", "dir for the root", entry.type)
        inode.children = self.root.children
        self.root = self._paths[b""] = inode
        self._last = b"", inode

    def _forget(
        self, index: int, entry: TocEntry, path: bytes, old: Inode, inode: Inode | None
    ) -> None:
        """Give what a directory has to the one that replaces it; anything else finds it empty."""
        self._last = b"", self.root
        self._implied.discard(path)
        if inode is not None and inode.is_directory:
            inode.children = old.children
        elif old.children:
            raise self._in_the_way(index, entry)
        else:
            del self._paths[path]

    @staticmethod
    def _in_the_way(index: int, entry: TocEntry) -> FormatError:
        return entry_error(index, entry, "name", "a path through directories", entry.name[:200])
