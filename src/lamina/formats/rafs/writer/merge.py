"""The layers of an image as one tree: what an overlay of them shows."""

from __future__ import annotations

from lamina.formats.erofs.tree import Inode as LowerInode
from lamina.formats.rafs.model import Inode
from lamina.formats.rafs.writer.layer_files import WrittenLayer, is_whiteout


class MergedTree:
    """All layers so far, base first.

    Attributes:
        root: the tree; None before the first layer. Its inodes are those of the layers.
    """

    def __init__(self) -> None:
        self.root: Inode | None = None

    def add(self, layer: WrittenLayer) -> None:
        """Put a layer on top; its tree is part of this one then."""
        waiting: list[tuple[Inode | None, Inode]] = [(self.root, layer.root)]
        while waiting:
            below, directory = waiting.pop()
            hidden = {} if below is None or directory in layer.opaque else below.children
            children = directory.children
            for name in [name for name in hidden if name not in children]:
                children[name] = hidden[name]
            for name, child in list(children.items()):
                under = hidden.get(name)
                if under is child:
                    continue
                if is_whiteout(child):
                    del children[name]
                elif child.is_directory:
                    known = under is not None and under.is_directory
                    waiting.append((under if known else None, child))
        self.root = layer.root

    def directory(self, path: bytes) -> LowerInode | None:
        """Return a copy of the directory at a path, without children; None where there is none."""
        inode = self.root
        for part in filter(None, path.split(b"/")):
            inode = inode.children.get(part) if inode else None
        if inode is None or not inode.is_directory:
            return None
        return LowerInode(inode.mode, inode.uid, inode.gid, inode.mtime, xattrs=inode.xattrs)
