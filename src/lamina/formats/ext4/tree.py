"""The tree of all layers so far, by path."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from lamina.errors import FormatError, ResourceExhausted
from lamina.formats.ext4.layout import MAX_LINKS, MAX_NAME
from lamina.formats.ext4.node import Directory, Node, new_directory

MAX_PATH = 4095
"""Bytes: PATH_MAX without its NUL."""
_MAX_DEREFERENCES = 40
"""Symbolic links on the way to one directory; Linux has the same bound."""
_MAX_CACHED = 1024


class Tree:
    """A root and what is below it. Symbolic links are followed as if the root were `/`.

    Attributes:
        root: the directory where all begins.
        at: byte in the archive, for errors.
        changed: inodes that are new or must be written anew, in the order in which that happened.
        dropped: inodes that lost their last name.
    """

    def __init__(self, root: Node, imply: Callable[[], Node]) -> None:
        """`imply` makes the inode of a directory that an archive uses and does not describe."""
        self.root = root
        self.at = 0
        self.changed: dict[Node, None] = {root: None}
        self.dropped: list[Node] = []
        self._imply = imply
        self._noted: dict[Directory, None] = {}
        self._found: dict[bytes, Node] = {}

    def begin(self) -> None:
        """Begin a layer: what is there now is of lower ones."""
        for directory in self._noted:
            directory.noted.clear()
        self._noted.clear()
        self._found.clear()

    def find(self, path: bytes) -> Node:
        """Return the directory at a path.

        Raises:
            FormatError: it does not exist, or the path leads through something else.
        """
        return self._walk(path, make=False)

    def make(self, path: bytes) -> Node:
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

    def put(self, parent: Node, name: bytes, node: Node) -> None:
        """Give an inode a name, in the place of what has it.

        Raises:
            FormatError: no file can have the name.
            ResourceExhausted: the inode has too many names.
        """
        if len(name) > MAX_NAME:
            raise self._error(f"names of at most {MAX_NAME} bytes", name)
        self.remove(parent, name)
        directory = inside(parent)
        directory.children[name] = node
        directory.changed[name] = None
        if node.directory:
            parent.links += 1
        else:
            node.links += 1
            if node.links > MAX_LINKS:
                hint = f"a file has more than {MAX_LINKS} names"
                raise ResourceExhausted("write ext4", hint=hint)
        self.changed[parent] = None
        self.changed[node] = None

    def note(self, parent: Node, name: bytes) -> None:
        """Spare a name when what lower layers have in its directory is removed."""
        directory = inside(parent)
        directory.noted.add(name)
        self._noted[directory] = None

    def remove(self, parent: Node, name: bytes) -> None:
        """Remove a name and all below it; it need not exist."""
        directory = inside(parent)
        node = directory.children.pop(name, None)
        if node is None:
            return
        directory.changed[name] = None
        self.changed[parent] = None
        if node.directory:
            parent.links -= 1
        if node.directory or node.is_link:
            self._found.clear()
        self._drop(node)

    def clear(self, top: Node) -> None:
        """Remove what is below a directory but what was noted, and the directories above that."""
        order = [top]
        for node in order:
            order += [child for child in inside(node).children.values() if child.directory]
        for node in reversed(order):
            directory = inside(node)
            for name, child in list(directory.children.items()):
                kept = child.directory and child.directory.children
                if not kept and name not in directory.noted:
                    self.remove(node, name)

    def _drop(self, top: Node) -> None:
        """Take one name from an inode, and all from what is below it."""
        todo = [top]
        while todo:
            node = todo.pop()
            if node.directory:
                node.links = 0
                todo += node.directory.children.values()
            else:
                node.links -= 1
            if node.links:
                self.changed[node] = None
            else:
                self.changed.pop(node, None)
                self.dropped.append(node)

    def _walk(self, path: bytes, *, make: bool) -> Node:
        if len(path) > MAX_PATH:
            raise self._error(f"paths of at most {MAX_PATH} bytes", path)
        todo = deque(path.split(b"/"))
        node = self.root
        links = 0
        while todo:
            part = todo.popleft()
            if part in {b"", b"."}:
                continue
            directory = inside(node)
            if part == b"..":
                node = directory.parent
                continue
            child = directory.children.get(part)
            if child is None:
                if not make:
                    raise self._error("a link to something that exists", path)
                child = new_directory(self._imply(), node)
                self.put(node, part, child)
            if child.directory:
                node = child
                continue
            links += 1
            if not child.is_link or links > _MAX_DEREFERENCES:
                raise self._error("a path through directories and few links", path)
            todo.extendleft(reversed(child.target.split(b"/")))
            if child.target.startswith(b"/"):
                node = self.root
        return node

    def _error(self, expected: str, path: bytes) -> FormatError:
        return FormatError("tar", self.at, expected=expected, got=repr(path[: MAX_NAME + 1]))


def inside(node: Node) -> Directory:
    """Return what a directory has."""
    directory = node.directory
    assert directory is not None
    return directory
