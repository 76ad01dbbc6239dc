"""The tree of a layer on its way from a tar into an image, and the files that it has."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from lamina.core.digest import Digest
from lamina.formats.erofs.tar import OPAQUE_XATTR
from lamina.formats.erofs.tree import HOLE
from lamina.formats.erofs.tree import Inode as TarInode
from lamina.formats.rafs.model import Blob, FileChunk, Inode
from lamina.formats.rafs.tree import is_steering
from lamina.formats.rafs.writer.chunks import ChunkPool
from lamina.formats.tar.layer import clean


class WrittenLayer(NamedTuple):
    """What `write_layer` returns.

    Attributes:
        root: the tree, whiteouts as character devices 0.
        opaque: directories that hide what lower layers have there.
        blob: what was written; None where no chunk was new.
        digest: of the blob, whose `size` in the registry is `Blob.compressed_size`.
        chunks: of all files, those that are there several times each time.
        prioritized: files that come first in the blob.
        missing: paths to be prioritised that are no file of the layer.
        warnings: what was left out, as sentences; the first few only.
    """

    root: Inode
    opaque: frozenset[Inode]
    blob: Blob | None
    digest: Digest
    chunks: int
    prioritized: tuple[Inode, ...]
    missing: tuple[bytes, ...]
    warnings: tuple[str, ...]


class Files:
    """The regular files of a tree that have data, in the order in which the blob gets them.

    Attributes:
        order: each once.
        prioritized: how many of them are wanted first.
        missing: paths that are no file.
    """

    def __init__(self, root: TarInode, prioritized: Sequence[bytes]) -> None:
        """Find the files of a tree; `prioritized` are paths, in the order wanted."""
        first: dict[TarInode, None] = {}
        self.missing: list[bytes] = []
        for path in prioritized:
            inode = _find(root, clean(path))
            if inode is None or not inode.is_regular:
                self.missing.append(path)
            elif inode.size:
                first[inode] = None
        rest = {inode: None for inode in _walk(root) if inode.is_regular and inode.size}
        behind = sorted((inode for inode in rest if inode not in first), key=_place)
        self.order = [*first, *behind]
        self.prioritized = len(first)


def _find(root: TarInode, path: bytes) -> TarInode | None:
    inode: TarInode | None = root
    for part in filter(None, path.split(b"/")):
        inode = inode.children.get(part) if inode else None
    return inode


def _walk(root: TarInode) -> Iterator[TarInode]:
    """Yield each inode, one with several names as often, in an order that only the tree decides."""
    waiting = [root]
    while waiting:
        inode = waiting.pop()
        yield inode
        waiting += [inode.children[name] for name in sorted(inode.children, reverse=True)]


def _place(inode: TarInode) -> int:
    """Return where the tar has the first byte of a file; files of holes alone come last."""
    return next((each.offset for each in inode.extents if each.device != HOLE), 1 << 63)


def with_chunks(
    files: Files, digests: Sequence[bytes], pool: ChunkPool, chunk_size: int
) -> dict[TarInode, Inode]:
    """Return copies of the files with their chunks, whose digests are in the order of the files."""
    copies: dict[TarInode, Inode] = {}
    following = iter(digests)
    for inode in files.order:
        copy = copies[inode] = _inode(inode)
        copy.chunks = tuple(
            FileChunk(offset, pool.chunks[next(following)])
            for offset in range(0, inode.size, chunk_size)
        )
    return copies


def copy_tree(root: TarInode, copies: dict[TarInode, Inode]) -> Inode:
    """Return the copy of a tree, of which `copies` has a part before and all of it afterwards."""
    found = list(dict.fromkeys(_walk(root)))
    for inode in found:
        if inode not in copies:
            copies[inode] = _inode(inode)
    for inode in found:
        children = copies[inode].children
        for name, child in inode.children.items():
            children[name] = copies[child]
    return copies[root]


def _inode(inode: TarInode) -> Inode:
    """Return a copy without chunks and children; what steers an overlay is left out."""
    xattrs: Mapping[bytes, bytes] = {
        name: value for name, value in inode.xattrs.items() if not is_steering(name)
    }
    return Inode(
        0,
        inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        mtime=inode.mtime,
        rdev=inode.rdev,
        size=inode.size,
        target=inode.target,
        xattrs=xattrs,
    )


def drop_names(root: TarInode, names: Iterable[bytes]) -> None:
    """Take names out of the root, such as what makes a layer an eStargz layer."""
    for name in names:
        root.children.pop(name, None)


def is_whiteout(inode: Inode) -> bool:
    """Tell whether this is no file, but the mark that a lower layer's file is gone."""
    return stat.S_ISCHR(inode.mode) and not inode.rdev


def opaque_of(copies: Mapping[TarInode, Inode]) -> frozenset[Inode]:
    """Return those directories, of all that were copied, that hide what lower layers have there."""
    return frozenset(copies[inode] for inode in copies if OPAQUE_XATTR in inode.xattrs)
