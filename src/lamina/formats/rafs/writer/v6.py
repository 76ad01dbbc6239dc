"""Bootstraps of version 6, as upstream's builder lays them out and Linux mounts them.

block 0                 superblock, extended superblock, a slot for each blob
the next block          blob table, prefetch table
a block without use, inodes, blocks of directories and links
the next block          chunk table
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from lamina.errors import InvalidArgument
from lamina.formats.erofs.directories import directory_block, split_blocks
from lamina.formats.erofs.layout import (
    BLOCK_BITS,
    DEVICE_SLOT,
    EROFS_INODE_CHUNK_BASED,
    EROFS_INODE_FLAT_INLINE,
    EROFS_INODE_LAYOUT_EXTENDED,
    EROFS_SUPER_MAGIC_V1,
    EROFS_SUPER_OFFSET,
    EXTENDED_INODE,
    INODE_SLOT,
    SECOND,
    SUPERBLOCK,
    inode_format,
)
from lamina.formats.erofs.output import Output
from lamina.formats.erofs.tree import BLOCK
from lamina.formats.rafs.flags import SuperFlags
from lamina.formats.rafs.layout import (
    CHUNK,
    V5_TABLE_ENTRY,
    V6_BLOB,
    V6_CHUNK_ADDRESS,
    V6_EXTENDED,
    V6_EXTENDED_OFFSET,
    V6_FEATURE_COMPAT,
    V6_FEATURE_INCOMPAT,
    V6_SLOT_OFFSET,
    V6Blob,
    V6Extended,
    aligned,
)
from lamina.formats.rafs.model import DIGEST_LENGTH, Blob, Inode
from lamina.formats.rafs.v6_blobs import MAX_BLOBS
from lamina.formats.rafs.writer.options import RafsOptions
from lamina.formats.rafs.writer.tables import Tables, raw_chunk, super_flags
from lamina.formats.rafs.writer.v6_nodes import (
    ROOT_NID,
    Node,
    Placement,
    addresses_offset,
    collect,
)

_SLOTS = V6_SLOT_OFFSET * DEVICE_SLOT.size
_MAPPED_UNIT = 2 << 20
"""Bytes: where blobs begin when bootstrap and blobs are put together into one device."""


def write_v6(
    root: Inode,
    tables: Tables,
    out: BinaryIO,
    options: RafsOptions,
    prefetch: Sequence[Inode] = (),
) -> None:
    """Write a bootstrap. Equal trees make equal bytes.

    Args:
        root: a directory.
        tables: the blobs that its files have chunks of.
        out: empty, and seekable. It is neither closed nor flushed.
        options: those that the blobs were written with.
        prefetch: inodes wanted first; those that are not in the tree are passed over.

    Raises:
        InvalidArgument: there are too many blobs, or an inode has too many attributes.
    """
    if len(tables.blobs) > MAX_BLOBS:
        hint = f"it has chunks of {len(tables.blobs)} blobs, over {MAX_BLOBS}"
        raise InvalidArgument("write a RAFS bootstrap", hint=hint)
    _Writer(root, tables, out, options, prefetch).write()


class _Writer:
    def __init__(
        self,
        root: Inode,
        tables: Tables,
        out: BinaryIO,
        options: RafsOptions,
        prefetch: Sequence[Inode],
    ) -> None:
        self._nodes = collect(root, options.chunk_size)
        self._tables = tables
        self._options = options
        self._out = Output(out, 0)
        nodes = self._nodes
        self._prefetch = [nodes[inode] for inode in dict.fromkeys(prefetch) if inode in nodes]
        count = len(tables.blobs)
        self._blobs_at = aligned(_SLOTS + count * DEVICE_SLOT.size, BLOCK)
        self._prefetch_at = self._blobs_at + count * V6_BLOB.size
        end = self._prefetch_at + len(self._prefetch) * V5_TABLE_ENTRY.size
        self._meta_block = aligned(end, BLOCK) // BLOCK
        self._place = Placement(list(nodes.values()), self._meta_block)
        self._chunks_at = self._place.blocks * BLOCK

    def write(self) -> None:
        out = self._out
        self._write_head()
        out.pad_to(self._blobs_at)
        for index, blob in enumerate(self._tables.blobs):
            out.write(self._blob(index, blob))
        for node in self._prefetch:
            out.write(V5_TABLE_ENTRY.pack(node.nid))
        origin = self._meta_block * BLOCK
        for number, node in enumerate(sorted(self._nodes.values(), key=_nid), 1):
            out.pad_to(origin + node.nid * INODE_SLOT)
            self._write_inode(node, number)
        for node in self._place.with_blocks:
            out.pad_to(node.u * BLOCK)
            for block in self._data(node, 0, node.own_blocks):
                out.write(block)
                out.pad_to(aligned(out.position, BLOCK))
        out.pad_to(self._chunks_at)
        for chunk in self._tables.chunks:
            out.write(raw_chunk(chunk, self._tables.numbers[chunk.blob], 0))
        out.pad_to(aligned(out.position, BLOCK))
        out.flush()

    def _write_head(self) -> None:
        out = self._out
        out.pad_to(EROFS_SUPER_OFFSET)
        out.write(self._superblock())
        out.pad_to(V6_EXTENDED_OFFSET)
        out.write(V6_EXTENDED.pack(*self._extended()))
        out.pad_to(_SLOTS)
        position = self._chunks_at + len(self._tables.chunks) * CHUNK.size
        for blob in self._tables.blobs:
            position = aligned(position, _MAPPED_UNIT)
            blocks = blob.uncompressed_size // BLOCK
            mapped = position // BLOCK
            # What lies further cannot be put into one device: 0 says that it is nowhere.
            mapped = mapped if mapped + blocks <= 0xFFFFFFFF else 0
            out.write(DEVICE_SLOT.pack(blob.id.encode(), blocks, mapped, 0, 0))
            position += blob.uncompressed_size

    def _superblock(self) -> bytes:
        # Upstream counts the blocks of blobs alone, and refuses any where there is no blob.
        blocks = sum(blob.uncompressed_size for blob in self._tables.blobs) // BLOCK
        return SUPERBLOCK.pack(
            EROFS_SUPER_MAGIC_V1,
            0,
            V6_FEATURE_COMPAT,
            BLOCK_BITS,
            0,
            ROOT_NID,
            len(self._nodes),
            0,
            0,
            min(blocks, 0xFFFFFFFF),
            self._meta_block,
            0,
            bytes(16),
            b"",
            V6_FEATURE_INCOMPAT,
            0,
            len(self._tables.blobs),
            V6_SLOT_OFFSET,
            *(0,) * 8,
        )

    def _extended(self) -> V6Extended:
        flags = super_flags(self._options, self._nodes) | SuperFlags.INLINED_CHUNK_DIGEST
        return V6Extended(
            flags,
            self._blobs_at,
            len(self._tables.blobs) * V6_BLOB.size,
            self._options.chunk_size,
            self._chunks_at,
            len(self._tables.chunks) * CHUNK.size,
            self._prefetch_at if self._prefetch else 0,
            len(self._prefetch) * V5_TABLE_ENTRY.size,
        )

    def _blob(self, index: int, blob: Blob) -> bytes:
        meta = blob.meta
        assert meta is not None, "a blob of version 6 has its blob.meta"
        entry = V6Blob(
            blob.id.encode(),
            index,
            self._options.chunk_size,
            blob.chunk_count,
            blob.compressor,
            blob.digester,
            blob.features,
            blob.compressed_size,
            blob.uncompressed_size,
            blob.toc_size,
            *meta,
            blob.toc_digest or bytes(DIGEST_LENGTH),
            blob.meta_digest or bytes(DIGEST_LENGTH),
            blob.meta_size,
            0,
            0,
        )
        return V6_BLOB.pack(*entry)

    def _write_inode(self, node: Node, number: int) -> None:
        out, inode = self._out, node.inode
        at = out.position
        head = EXTENDED_INODE.pack(
            inode_format(EROFS_INODE_LAYOUT_EXTENDED, node.layout),
            node.xattr_icount,
            inode.mode,
            0,
            node.size,
            node.u,
            number,
            inode.uid,
            inode.gid,
            *divmod(inode.mtime, SECOND),
            node.nlink,
        )
        out.write(head + node.xattrs)
        if node.layout == EROFS_INODE_FLAT_INLINE:
            for last in self._data(node, node.own_blocks, node.own_blocks + 1):
                out.write(last)
        elif node.layout == EROFS_INODE_CHUNK_BASED:
            out.pad_to(at + addresses_offset(node))
            out.write(b"".join(self._addresses(inode, self._tables.numbers)))

    def _addresses(self, inode: Inode, numbers: Mapping[int, int]) -> Iterator[bytes]:
        """Yield an entry for each chunk: its number, its blob and its block on that's device."""
        for _offset, chunk in inode.chunks:
            number = chunk.number
            device = numbers[chunk.blob] + 1
            block = chunk.uncompressed_offset // BLOCK
            yield V6_CHUNK_ADDRESS.pack(number & 0xFFFF, device, number >> 16, block)

    def _data(self, node: Node, start: int, stop: int) -> Iterator[bytes]:
        """Yield blocks of a directory's or a link's data, without padding."""
        if not node.inode.is_directory:
            yield node.inode.target
            return
        if start == stop:
            return
        for index, names in enumerate(split_blocks(node.names)):
            if start <= index < stop:
                yield directory_block(names, [self._entry(node, name) for name in names])

    def _entry(self, directory: Node, name: bytes) -> tuple[int, int]:
        """Return nid and type of what a name in a directory stands for."""
        if name == b".":
            node = directory
        elif name == b"..":
            node = directory.parent or directory
        else:
            node = self._nodes[directory.inode.children[name]]
        return node.nid, node.file_type


def _nid(node: Node) -> int:
    return node.nid
