"""Bootstraps of version 5: a table of inodes whose records have all that they are."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from typing import NamedTuple

from lamina.core.source import RangeSource
from lamina.formats.erofs.hierarchy import MAX_PATH
from lamina.formats.erofs.layout import (
    FILE_TYPES,
    MAX_NAME,
    MAX_SIZE,
    MAX_TARGET,
    MAX_XATTR_VALUE,
    SECOND,
)
from lamina.formats.rafs.chunks import ChunkRecords
from lamina.formats.rafs.flags import (
    Compressor,
    Digester,
    SuperFlags,
    compressor_of,
    damaged,
    digester_of,
    parse_super_flags,
)
from lamina.formats.rafs.layout import (
    ALIGNMENT,
    CHUNK,
    MAX_CHUNK_SIZE,
    MIN_CHUNK_SIZE,
    V5_INODE,
    V5_INODE_HAS_HOLE,
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
from lamina.formats.rafs.metadata import BootstrapData
from lamina.formats.rafs.model import Blob, Bootstrap, FileChunk, Inode
from lamina.formats.rafs.v5_blobs import read_v5_blobs

_ROOT = 1
_FLAGS_AT = 16


def read_v5(source: RangeSource) -> Bootstrap:
    """Read a bootstrap of version 5, without comparing digests.

    Raises:
        FormatError: this is none, it is damaged, or it has what is not supported.
    """
    data = BootstrapData(source)
    superblock = _superblock(data)
    flags = parse_super_flags(superblock.flags, _FLAGS_AT)
    compressor = compressor_of(flags, Compressor.LZ4_BLOCK, _FLAGS_AT)
    digester = digester_of(flags, Digester.BLAKE3, _FLAGS_AT)
    blobs = read_v5_blobs(data, superblock, compressor, digester)
    reader = _Inodes(data, superblock, flags, blobs)
    root = reader.read()
    return Bootstrap(5, flags, superblock.block_size, 1, digester, blobs, root, reader.prefetch())


def _superblock(data: BootstrapData) -> V5Superblock:
    raw = data.read(0, V5_SUPERBLOCK_SIZE, "superblock")
    found = V5Superblock._make(V5_SUPERBLOCK.unpack_from(raw))
    if found.magic != V5_MAGIC:
        raise damaged(0, f"the magic number {V5_MAGIC:#x}", f"{found.magic:#x}")
    if found.version != V5_VERSION:
        raise damaged(4, f"version {V5_VERSION:#x}", f"{found.version:#x}")
    if found.sb_size != V5_SUPERBLOCK_SIZE:
        raise damaged(8, f"a superblock of {V5_SUPERBLOCK_SIZE} bytes", found.sb_size)
    size = found.block_size
    if size.bit_count() != 1 or not MIN_CHUNK_SIZE <= size <= MAX_CHUNK_SIZE:
        raise damaged(12, "chunks of 4 KiB to 16 MiB, a power of two", size)
    return found


class _Record(NamedTuple):
    """A record with what follows its head, but for the chunks.

    Attributes:
        at: its byte.
        chunks_at: where its chunks begin.
    """

    at: int
    head: V5Inode
    name: bytes
    target: bytes
    xattrs: dict[bytes, bytes]
    chunks_at: int


class _Waiting(NamedTuple):
    """A directory whose children are not read yet.

    Attributes:
        depth: bytes of its path.
    """

    inode: Inode
    head: V5Inode
    at: int
    depth: int


class _Inodes:
    """All that the inode table leads to, from its first entry on."""

    def __init__(
        self,
        data: BootstrapData,
        superblock: V5Superblock,
        flags: SuperFlags,
        blobs: Sequence[Blob],
    ) -> None:
        self._data = data
        self._superblock = superblock
        self._owned = bool(flags & SuperFlags.EXPLICIT_UID_GID)
        self._chunks = ChunkRecords(blobs)
        self._by_ino: dict[int, Inode] = {}
        count = superblock.inode_table_entries
        offset = superblock.inode_table_offset
        self._table = data.take(offset, count * V5_TABLE_ENTRY.size, "inode table")
        self._used = bytearray(count)

    def read(self) -> Inode:
        """Return the root of the tree.

        Raises:
            FormatError: a record is damaged, or the directories are no tree.
        """
        record = self._record(_ROOT, 0)
        root = self._inode(record)
        if not root.is_directory:
            raise damaged(record.at, "a directory as root", f"mode {root.mode:#o}")
        waiting = [_Waiting(root, record.head, record.at, 0)]
        while waiting:
            waiting += reversed(self._children(waiting.pop()))
        return root

    def prefetch(self) -> list[Inode]:
        """Return what is wanted first; numbers that no inode has are passed over, as upstream does.

        Raises:
            FormatError: the table lies outside the bootstrap.
        """
        count = self._superblock.prefetch_table_entries
        if not count:
            return []
        offset = self._superblock.prefetch_table_offset
        table = self._data.take(offset, count * V5_TABLE_ENTRY.size, "prefetch table")
        numbers = [number for (number,) in V5_TABLE_ENTRY.iter_unpack(table)]
        return [self._by_ino[number] for number in numbers if number in self._by_ino]

    def _children(self, directory: _Waiting) -> list[_Waiting]:
        """Put its children into a directory; return those that are directories."""
        head = directory.head
        below = []
        children = directory.inode.children
        for number in range(head.child_index, head.child_index + head.child_count):
            record = self._record(number, directory.at)
            depth = directory.depth + 1 + len(record.name)
            if depth > MAX_PATH:
                raise damaged(record.at, f"paths of at most {MAX_PATH} bytes", f"{depth} bytes")
            name = record.name
            if name in children or name in {b"", b".", b".."} or b"/" in name:
                raise damaged(record.at, "a name of its own without slash", name)
            inode = self._inode(record)
            children[name] = inode
            if inode.is_directory:
                below.append(_Waiting(inode, record.head, record.at, depth))
        return below

    def _record(self, number: int, at: int) -> _Record:
        """Return the record of a number; `at` is the byte of who asks."""
        count = len(self._used)
        if not 0 < number <= count:
            raise damaged(at, f"a number of an inode, 1 to {count}", number)
        entry = (number - 1) * V5_TABLE_ENTRY.size
        (place,) = V5_TABLE_ENTRY.unpack_from(self._table, entry)
        if self._used[number - 1]:
            raise damaged(at, "inodes of one name each", f"number {number} once more")
        self._used[number - 1] = 1
        if not V5_SUPERBLOCK_SIZE // ALIGNMENT <= place < V5_MAX_PLACE:
            at = self._superblock.inode_table_offset + entry
            raise damaged(at, "the place of an inode", place)
        return self._parse(place * ALIGNMENT)

    def _parse(self, at: int) -> _Record:
        data = self._data
        data.count_name(at)
        head = V5Inode._make(V5_INODE.unpack(data.take(at, V5_INODE.size, "inode")))
        end = at + V5_INODE.size
        name = data.take(end, aligned(head.name_size), "name")[: head.name_size]
        end += aligned(head.name_size)
        if len(name) > MAX_NAME or b"\0" in name:
            raise damaged(at, f"a name of at most {MAX_NAME} bytes", name[:80])
        target = data.take(end, aligned(head.symlink_size), "target")[: head.symlink_size]
        end += aligned(head.symlink_size)
        xattrs: dict[bytes, bytes] = {}
        if head.flags & V5_INODE_XATTR:
            (size,) = V5_XATTRS.unpack(data.take(end, V5_XATTRS.size, "size of xattrs"))
            end += V5_XATTRS.size
            xattrs = _xattrs(data.take(end, aligned(size), "xattrs")[:size], end)
            end += aligned(size)
        return _Record(at, head, name, target, xattrs, end)

    def _inode(self, record: _Record) -> Inode:
        """Return the inode of a record, which other names may have already."""
        head = record.head
        if stat.S_IFMT(head.mode) not in FILE_TYPES or head.mode >> 16:
            raise damaged(record.at, "the mode of a file", f"{head.mode:#o}")
        if head.mtime_nsec >= SECOND:
            raise damaged(record.at, f"fewer than {SECOND} nanoseconds", head.mtime_nsec)
        inode = Inode(
            head.ino,
            head.mode,
            head.nlink,
            head.uid if self._owned else 0,
            head.gid if self._owned else 0,
            head.mtime * SECOND + head.mtime_nsec,
            digest=head.digest,
            xattrs=record.xattrs,
        )
        if inode.is_regular:
            inode.size = head.size
            inode.chunks = self._file_chunks(record)
        elif stat.S_ISLNK(head.mode):
            inode.target = record.target
            if not 0 < len(inode.target) <= MAX_TARGET or b"\0" in inode.target:
                expected = f"a target of 1 to {MAX_TARGET} bytes"
                raise damaged(record.at, expected, inode.target[:80])
        elif stat.S_ISCHR(head.mode) or stat.S_ISBLK(head.mode):
            inode.rdev = head.rdev
        first = self._by_ino.setdefault(head.ino, inode)
        if first is inode:
            return inode
        # Each name of a hard link has all that the first has.
        if inode.is_directory or not _same(first, inode):
            raise damaged(record.at, "an inode number of its own", f"{head.ino} once more")
        return first

    def _file_chunks(self, record: _Record) -> tuple[FileChunk, ...]:
        """Return the chunks of a file: at multiples of the chunk size, each as large but the last.

        What a file with holes leaves out is zeros.
        """
        head, at = record.head, record.chunks_at
        step = self._superblock.block_size
        if head.size > MAX_SIZE:
            raise damaged(record.at, f"a size of at most {MAX_SIZE} bytes", head.size)
        full = aligned(head.size, step) // step
        sparse = head.flags & V5_INODE_HAS_HOLE
        if head.child_count > full or (head.child_count < full and not sparse):
            raise damaged(record.at, f"{full} chunks of {head.size} bytes", head.child_count)
        # Holes count too: they take as much of an EROFS image as chunks.
        self._data.count_chunks(full, at)
        raw = self._data.take(at, head.child_count * CHUNK.size, "chunks")
        found = []
        expected = 0
        for start in range(0, len(raw), CHUNK.size):
            offset, chunk = self._chunks.parse(raw, start, at + start)
            if offset % step or offset < expected or (offset > expected and not sparse):
                raise damaged(at + start, f"a chunk at byte {expected} of the file", offset)
            size = min(step, head.size - offset)
            if chunk.uncompressed_size != size:
                got = chunk.uncompressed_size
                raise damaged(at + start, f"a chunk of {size} bytes at byte {offset}", got)
            expected = offset + step
            found.append(FileChunk(offset, chunk))
        return tuple(found)


def _same(first: Inode, second: Inode) -> bool:
    return (
        first.mode == second.mode
        and first.size == second.size
        and first.digest == second.digest
        and first.target == second.target
        and first.rdev == second.rdev
        and first.chunks == second.chunks
    )


def _xattrs(raw: bytes, at: int) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    start = 0
    while start < len(raw):
        if start + V5_XATTR.size > len(raw):
            raise damaged(at + start, "the size of an xattr", f"{len(raw) - start} bytes")
        (size,) = V5_XATTR.unpack_from(raw, start)
        body = start + V5_XATTR.size
        if size > len(raw) - body:
            raise damaged(at + start, f"an xattr of {size} bytes", f"{len(raw) - body} bytes")
        name, nul, value = raw[body : body + size].partition(b"\0")
        if not nul or not 0 < len(name) <= MAX_NAME or len(value) > MAX_XATTR_VALUE:
            raise damaged(at + start, "name and value of an xattr", name[:80])
        if name in found:
            raise damaged(at + start, "xattrs with names of their own", name)
        found[name] = value
        start = body + size
    return found
