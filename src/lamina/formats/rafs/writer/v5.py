"""Bootstraps of version 5.

    superblock, inode table, prefetch table, blob table, extended blob table, inodes

Numbers of the inode table are given directory by directory, so that children follow each other, and
each subdirectory is followed by what is below it; records lie in the same order. Each name of a
hard link has a record, with the number of the first as its inode number.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from lamina.errors import InvalidArgument
from lamina.formats.erofs.directories import directory_size, sorted_names
from lamina.formats.erofs.layout import SECOND
from lamina.formats.erofs.output import Output
from lamina.formats.erofs.tree import BLOCK
from lamina.formats.rafs.digests import content_of, digest_of
from lamina.formats.rafs.layout import (
    ALIGNMENT,
    CHUNK,
    V5_BLOB,
    V5_EXTENDED_BLOB,
    V5_INODE,
    V5_INODE_SYMLINK,
    V5_INODE_XATTR,
    V5_MAGIC,
    V5_MAX_PLACE,
    V5_SUPERBLOCK,
    V5_SUPERBLOCK_SIZE,
    V5_TABLE_ENTRY,
    V5_VERSION,
    V5_XATTR,
    V5_XATTRS,
    V5Inode,
    V5Superblock,
    aligned,
)
from lamina.formats.rafs.model import Inode
from lamina.formats.rafs.writer.options import RafsOptions
from lamina.formats.rafs.writer.tables import Tables, raw_chunk, super_flags

_DOTS = 2
_SECTOR = 512


def write_v5(
    root: Inode,
    tables: Tables,
    out: BinaryIO,
    options: RafsOptions,
    prefetch: Sequence[Inode] = (),
) -> None:
    """Write a bootstrap. Equal trees make equal bytes. The inodes get their digests.

    Args:
        root: a directory.
        tables: the blobs that its files have chunks of.
        out: empty, and seekable. It is neither closed nor flushed.
        options: those that the blobs were written with.
        prefetch: inodes wanted first; those that are not in the tree are passed over.

    Raises:
        InvalidArgument: the bootstrap would be larger than 4 GiB.
    """
    _Writer(root, tables, out, options, prefetch).write()


class _Record(NamedTuple):
    """A name.

    Attributes:
        name: `/` of the root.
        inode: that has it.
        ino: of that: the number of the first record that has it.
        parent: inode number of the directory; 0 of the root.
        first_child: number of its first child.
    """

    name: bytes
    inode: Inode
    ino: int
    parent: int
    first_child: int


class _Writer:
    def __init__(
        self,
        root: Inode,
        tables: Tables,
        out: BinaryIO,
        options: RafsOptions,
        prefetch: Sequence[Inode],
    ) -> None:
        self._tables = tables
        self._options = options
        self._out = Output(out, 0)
        self._numbers: dict[Inode, int] = {root: 1}
        self._links: dict[Inode, int] = {}
        self._records = self._number(root)
        self._set_digests()
        known = [inode for inode in dict.fromkeys(prefetch) if inode in self._numbers]
        self._prefetch = [self._numbers[inode] for inode in known]

    def write(self) -> None:
        out = self._out
        count = aligned(len(self._records), ALIGNMENT // V5_TABLE_ENTRY.size)
        prefetch_at = V5_SUPERBLOCK_SIZE + count * V5_TABLE_ENTRY.size
        wanted = b"".join(map(V5_TABLE_ENTRY.pack, self._prefetch))
        blobs_at = prefetch_at + aligned(len(wanted))
        # Ids are parted by NULs, and the last has none.
        ids = [V5_BLOB.pack(*blob.readahead) + blob.id.encode() for blob in self._tables.blobs]
        table = b"\0".join(ids)
        extended_at = blobs_at + aligned(len(table))
        first = extended_at + len(ids) * V5_EXTENDED_BLOB.size
        superblock = V5Superblock(
            V5_MAGIC,
            V5_VERSION,
            V5_SUPERBLOCK_SIZE,
            self._options.chunk_size,
            super_flags(self._options, self._numbers),
            len({record.ino for record in self._records}),
            V5_SUPERBLOCK_SIZE,
            prefetch_at,
            blobs_at,
            count,
            len(self._prefetch),
            len(table),
            len(ids),
            extended_at,
        )
        out.write(V5_SUPERBLOCK.pack(*superblock))
        out.pad_to(V5_SUPERBLOCK_SIZE)
        for place in self._places(first):
            out.write(V5_TABLE_ENTRY.pack(place // ALIGNMENT))
        out.pad_to(prefetch_at)
        out.write(wanted)
        out.pad_to(blobs_at)
        out.write(table)
        out.pad_to(extended_at)
        for blob in self._tables.blobs:
            sizes = (blob.uncompressed_size, blob.compressed_size)
            out.write(V5_EXTENDED_BLOB.pack(blob.chunk_count, blob.features, *sizes))
        for record in self._records:
            self._write_record(record)
        out.flush()

    def _number(self, root: Inode) -> list[_Record]:
        """Return the records of all names, by their numbers."""
        records = [_Record(b"/", root, 1, 0, 0)]
        waiting = [0]
        while waiting:
            place = waiting.pop()
            record = records[place]
            # A directory without children names the place where they would be.
            records[place] = record._replace(first_child=len(records) + 1)
            below = []
            # Digests follow the order of children.
            children = dict(sorted(record.inode.children.items()))
            record.inode.children = children
            for name, child in children.items():
                number = self._numbers.setdefault(child, len(records) + 1)
                # Upstream refuses an inode above its directory, unless it is a regular file.
                if number <= record.ino and not child.is_regular:
                    number = len(records) + 1
                self._links[child] = self._links.get(child, 0) + 1
                if child.is_directory:
                    below.append(len(records))
                records.append(_Record(name, child, number, record.ino, 0))
            waiting += reversed(below)
        return records

    def _set_digests(self) -> None:
        """Give each inode that of what it has; children have numbers above their directory's."""
        for record in reversed(self._records):
            record.inode.digest = digest_of(self._options.digester, content_of(record.inode))

    def _places(self, at: int) -> Iterator[int]:
        for record in self._records:
            yield at
            at += _size(record)
            if at // ALIGNMENT >= V5_MAX_PLACE:
                hint = f"it has more than {V5_MAX_PLACE * ALIGNMENT} bytes: use version 6"
                raise InvalidArgument("write a RAFS bootstrap of version 5", hint=hint)

    def _write_record(self, record: _Record) -> None:
        out, inode = self._out, record.inode
        out.write(V5_INODE.pack(*self._head(record)))
        for part in (record.name, inode.target):
            out.write(part)
            out.pad_to(aligned(out.position))
        if inode.xattrs:
            pairs = _pairs(inode)
            out.write(V5_XATTRS.pack(len(pairs)) + pairs)
            out.pad_to(aligned(out.position))
        for offset, chunk in inode.chunks:
            out.write(raw_chunk(chunk, self._tables.numbers[chunk.blob], offset))

    def _head(self, record: _Record) -> V5Inode:
        inode = record.inode
        is_directory = inode.is_directory
        links = self._links.get(inode, 1)
        flags = V5_INODE_SYMLINK if stat.S_ISLNK(inode.mode) else 0
        flags |= V5_INODE_XATTR if inode.xattrs else 0
        size = inode.size or len(inode.target)
        if is_directory:
            size = aligned(directory_size(sorted_names(inode.children)), BLOCK)
            links = _DOTS + sum(child.is_directory for child in inode.children.values())
        mtime, nanoseconds = divmod(inode.mtime, SECOND)
        return V5Inode(
            inode.digest,
            record.parent,
            record.ino,
            inode.uid,
            inode.gid,
            0,
            inode.mode,
            size,
            aligned(size, _SECTOR) // _SECTOR,
            flags,
            links,
            record.first_child,
            len(inode.children) if is_directory else len(inode.chunks),
            len(record.name),
            len(inode.target),
            inode.rdev,
            nanoseconds,
            mtime,
        )


def _size(record: _Record) -> int:
    """Return the bytes of a record."""
    inode = record.inode
    size = V5_INODE.size + aligned(len(record.name)) + aligned(len(inode.target))
    if inode.xattrs:
        size += V5_XATTRS.size + aligned(len(_pairs(inode)))
    return size + len(inode.chunks) * CHUNK.size


def _pairs(inode: Inode) -> bytes:
    """Return the attributes: names and values, each pair with its size."""
    pairs = []
    for name in sorted(inode.xattrs):
        pair = name + b"\0" + inode.xattrs[name]
        pairs.append(V5_XATTR.pack(len(pair)) + pair)
    return b"".join(pairs)
