"""Everything that a blob's TOC says, with the data behind it, each piece verified."""

from __future__ import annotations

import hashlib
import io
import stat
from typing import Any, NamedTuple

from lamina.formats.compression import decompress
from lamina.formats.erofs.tree import Inode
from lamina.formats.estargz.footer import find_toc
from lamina.formats.estargz.toc import Toc, read_toc
from lamina.formats.estargz.tree import LayerTree, to_tree
from lamina.lazy.codecs import decode
from lamina.lazy.unit import Codec

OPAQUE = b"trusted.overlay.opaque"


class Blob(NamedTuple):
    """What a blob has.

    Attributes:
        tar: what it decodes to.
        tree: of its TOC.
        files: what `describe` says of each path.
    """

    tar: bytes
    toc: Toc
    tree: LayerTree
    files: dict[bytes, tuple[Any, ...]]


class BytesSource:
    """A source of ranges in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read_at(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size
        return self._data[offset : offset + length]


def read_blob(data: bytes) -> Blob:
    """Read a whole blob, both ways: as a compressed tar, and file by file."""
    source = BytesSource(data)
    location = find_toc(source)
    toc = read_toc(source, location)
    tree = to_tree(toc, opaque_xattr=OPAQUE)
    cache = _fill(data, tree, Codec.ZSTD if toc.is_zstd else Codec.GZIP)
    files = {path: describe(inode, cache) for path, inode in walk(tree.root)}
    return Blob(b"".join(decompress(io.BytesIO(data).read)), toc, tree, files)


def walk(directory: Inode, path: bytes = b"") -> list[tuple[bytes, Inode]]:
    """Return all inodes with their paths, the root's empty."""
    found = [(path, directory)]
    for name, inode in directory.children.items():
        below = path + b"/" + name if path else name
        found += walk(inode, below) if inode.is_directory else [(below, inode)]
    return found


def describe(inode: Inode, cache: bytes) -> tuple[Any, ...]:
    """Return all that tells one file from another; of links, what they share is not told."""
    data: bytes = inode.target
    if stat.S_ISREG(inode.mode):
        data = b"".join(cache[e.offset : e.offset + e.length] for e in inode.extents)
        assert len(data) == inode.size
    xattrs = dict(inode.xattrs)
    return (inode.mode, inode.uid, inode.gid, inode.mtime, inode.rdev, xattrs, data)


def _fill(data: bytes, tree: LayerTree, codec: Codec) -> bytes:
    cache = bytearray(tree.cache_size)
    for unit in tree.units:
        encoded = data[unit.source_offset : unit.source_offset + unit.source_length]
        end = max(piece.inner_offset + piece.length for piece in unit.pieces)
        decoded = bytes(decode(codec, encoded, end))
        for piece in unit.pieces:
            body = decoded[piece.inner_offset : piece.inner_offset + piece.length]
            assert hashlib.sha256(body).digest() == piece.digest
            cache[piece.cache_offset : piece.cache_offset + piece.length] = body
    return bytes(cache)
