"""The tree that the entries of a layer are put into, in memory."""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Callable

from lamina.errors import FormatError
from lamina.formats.erofs.layout import MAX_NAME
from lamina.formats.erofs.tree import Inode

MAX_PATH = 4095
"""Bytes: PATH_MAX without its NUL."""
_MAX_LINKS = 40
"""Symbolic links on the way to one directory; Linux has the same bound."""
_MAX_CACHED = 1024


class LayerTree:
    """A root and what is below it, by path.

    Symbolic links are followed as if the root were `/`.

    Attributes:
        root: the directory where all begins.
        at: byte in the archive, for errors.
    """

    def __init__(self, imply: Callable[[bytes], Inode]) -> None:
        """`imply` makes the directory of a path that the archive uses and does not describe."""
        self.root = Inode(stat.S_IFDIR | 0o755)
        self.at = 0
        self._imply = imply
        self._found: dict[bytes, Inode] = {}

    def find(self, path: bytes) -> Inode:
        """Return the directory at a path.

        Raises:
            FormatError: it does not exist, or the path leads through something else.
        """
        return self._walk(path, make=False)

    def make(self, path: bytes) -> Inode:
        """Return the directory at a path, after making it and those above it where missing.

        Raises:
            FormatError: the path is too long, or leads through something else.
        """
        found = self._found.get(path)
        if found is None:
            found = self._walk(path, make=True)
            if len(self._found) >= _MAX_CACHED:
                self._found.clear()
            self._found[path] = found
        return found

    def remove(self, directory: Inode, name: bytes) -> None:
        """Remove a name and all below it; it need not exist."""
        inode = directory.children.pop(name, None)
        if inode is not None and (inode.is_directory or stat.S_ISLNK(inode.mode)):
            self._found.clear()

    def put(self, directory: Inode, name: bytes, inode: Inode) -> None:
        """Give an inode a name, in the place of what has it.

        Raises:
            FormatError: no file can have the name.
        """
        if len(name) > MAX_NAME:
            raise self._error(f"names of at most {MAX_NAME} bytes", name)
        self.remove(directory, name)
        directory.children[name] = inode

    def _walk(self, path: bytes, *, make: bool) -> Inode:
        if len(path) > MAX_PATH:
            raise self._error(f"paths of at most {MAX_PATH} bytes", path)
        todo = deque(path.split(b"/"))
        done: list[tuple[bytes, Inode]] = []
        directory = self.root
        links = 0
        while todo:
            part = todo.popleft()
            if part in {b"", b"."}:
                continue
            if part == b"..":
                done = done[:-1]
                directory = done[-1][1] if done else self.root
                continue
            inode = directory.children.get(part)
            if inode is None:
                if not make:
                    raise self._error("a link to something that exists", path)
                inode = self._imply(b"/".join([*(name for name, _ in done), part]))
                self.put(directory, part, inode)
            if inode.is_directory:
                done.append((part, inode))
                directory = inode
                continue
            links += 1
            if not stat.S_ISLNK(inode.mode) or links > _MAX_LINKS:
                raise self._error("a path through directories and few links", path)
            todo.extendleft(reversed(inode.target.split(b"/")))
            if inode.target.startswith(b"/"):
                done = []
                directory = self.root
        return directory

    def _error(self, expected: str, path: bytes) -> FormatError:
        return FormatError("tar", self.at, expected=expected, got=repr(path[: MAX_NAME + 1]))
