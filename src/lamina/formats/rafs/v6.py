"""Bootstraps of version 6: EROFS images, with tables of blobs and chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lamina.core.source import RangeSource
from lamina.formats.erofs.attributes import Attribute, read_attributes
from lamina.formats.erofs.hierarchy import Hierarchy, read_target
from lamina.formats.erofs.inodes import Node
from lamina.formats.erofs.layout import (
    EROFS_CHUNK_FORMAT_BLKBITS_MASK,
    EROFS_CHUNK_FORMAT_INDEXES,
    EROFS_INODE_CHUNK_BASED,
    EROFS_NULL_ADDR,
    EROFS_SUPER_OFFSET,
)
from lamina.formats.erofs.volume import Volume
from lamina.formats.rafs.chunks import ChunkRecords
from lamina.formats.rafs.flags import (
    BlobFeatures,
    SuperFlags,
    compressor_of,
    damaged,
    digester_of,
    parse_super_flags,
)
from lamina.formats.rafs.layout import (
    CHUNK,
    MAX_CHUNK_SIZE,
    MIN_CHUNK_SIZE,
    V5_TABLE_ENTRY,
    V6_CHUNK_ADDRESS,
    V6_EXTENDED,
    V6_EXTENDED_OFFSET,
    V6_FEATURE_COMPAT,
    V6_FEATURE_INCOMPAT,
    V6_SLOT_OFFSET,
    V6Extended,
    aligned,
)
from lamina.formats.rafs.metadata import BootstrapData
from lamina.formats.rafs.model import UNKNOWN, Blob, Bootstrap, Chunk, FileChunk, Inode
from lamina.formats.rafs.v6_blobs import check_slots, read_v6_blobs

_BLOCK_BITS = {9, 12}
_HOLE = (-1, -1)
"""As the place of a chunk: none."""


def read_v6(source: RangeSource) -> Bootstrap:
    """Read a bootstrap of version 6.

    Raises:
        FormatError: this is none, it is damaged, or it has what is not supported.
    """
    data = BootstrapData(source)
    volume = Volume(data, ())
    extended, flags = _superblocks(data, volume)
    digester = digester_of(flags, None, V6_EXTENDED_OFFSET)
    compressor_of(flags, None, V6_EXTENDED_OFFSET)
    blobs = read_v6_blobs(data, extended)
    check_slots(volume, blobs)
    reader = _Inodes(data, volume, extended, flags, blobs)
    root = reader.read()
    return Bootstrap(
        6,
        flags,
        extended.chunk_size,
        volume.block,
        digester,
        blobs,
        root,
        reader.prefetch(),
    )


def _superblocks(data: BootstrapData, volume: Volume) -> tuple[V6Extended, SuperFlags]:
    found = volume.superblock
    at = EROFS_SUPER_OFFSET
    if not found.feature_compat & V6_FEATURE_COMPAT:
        expected = f"feature_compat with {V6_FEATURE_COMPAT:#x}"
        raise damaged(at, expected, f"{found.feature_compat:#x}")
    if found.feature_incompat != V6_FEATURE_INCOMPAT:
        raise damaged(at, "chunks and extra devices", f"features {found.feature_incompat:#x}")
    if found.blkszbits not in _BLOCK_BITS:
        raise damaged(at, "blocks of 512 or 4096 bytes", f"2**{found.blkszbits}")
    if found.devt_slotoff != V6_SLOT_OFFSET:
        raise damaged(at, f"a device table at slot {V6_SLOT_OFFSET}", found.devt_slotoff)
    if found.sb_extslots or found.xattr_blkaddr:
        raise damaged(at, "no slots after the superblock and no shared xattrs", "some")
    raw = data.read(V6_EXTENDED_OFFSET, V6_EXTENDED.size, "extended superblock")
    extended = V6Extended._make(V6_EXTENDED.unpack(raw))
    size = extended.chunk_size
    if size.bit_count() != 1 or not MIN_CHUNK_SIZE <= size <= MAX_CHUNK_SIZE:
        raise damaged(V6_EXTENDED_OFFSET, "chunks of 4 KiB to 16 MiB, a power of two", size)
    flags = parse_super_flags(extended.flags, V6_EXTENDED_OFFSET)
    tarfs = bool(flags & SuperFlags.TARTFS_MODE)
    if tarfs != (found.blkszbits == 9):
        raise damaged(at, "blocks of 512 bytes with TARTFS_MODE only", f"2**{found.blkszbits}")
    return extended, flags


class _Address(NamedTuple):
    """What stands for a chunk in an inode: enough to find it among all."""

    blob: int
    number: int
    block: int


class _Inodes:
    def __init__(
        self,
        data: BootstrapData,
        volume: Volume,
        extended: V6Extended,
        flags: SuperFlags,
        blobs: Sequence[Blob],
    ) -> None:
        self._data = data
        self._volume = volume
        self._extended = extended
        self._owned = bool(flags & SuperFlags.EXPLICIT_UID_GID)
        self._is_tar = bool(flags & SuperFlags.TARTFS_MODE)
        self._blobs = blobs
        self._made: dict[int, Inode] = {}
        self._chunks = self._chunk_table()
        self._has_table = bool(self._chunks)

    def read(self) -> Inode:
        """Return the root of the tree.

        Raises:
            FormatError: an inode is damaged, or the directories are no tree.
        """
        made = self._made
        for _path, name, parent, node in Hierarchy(self._volume).walk():
            inode = made.get(node.nid)
            if inode is None:
                inode = made[node.nid] = self._inode(node)
            if name:
                made[parent.nid].children[name] = inode
        return made[self._volume.superblock.rootnid]

    def prefetch(self) -> list[Inode]:
        """Return what is wanted first; nids of nothing are passed over.

        Raises:
            FormatError: the table lies outside the bootstrap.
        """
        offset, size = self._extended.prefetch_table_offset, self._extended.prefetch_table_size
        if not offset or not size:
            return []
        if size % V5_TABLE_ENTRY.size:
            raise damaged(offset, "a prefetch table of numbers", f"{size} bytes")
        table = self._data.take(offset, size, "prefetch table")
        nids = [nid for (nid,) in V5_TABLE_ENTRY.iter_unpack(table)]
        return [self._made[nid] for nid in nids if nid in self._made]

    def _chunk_table(self) -> dict[_Address, Chunk]:
        at, size = self._extended.chunk_table_offset, self._extended.chunk_table_size
        # That of a tar has one chunk only, which stands for none.
        if not size or self._is_tar:
            return {}
        if size % CHUNK.size:
            raise damaged(at, "a table of chunks", f"{size} bytes")
        self._data.count_chunks(size // CHUNK.size, at)
        raw = self._data.take(at, size, "chunk table")
        records = ChunkRecords(self._blobs)
        found: dict[_Address, Chunk] = {}
        bits = self._volume.block_bits
        for start in range(0, size, CHUNK.size):
            _offset, chunk = records.parse(raw, start, at + start)
            address = _Address(chunk.blob, chunk.number, chunk.uncompressed_offset >> bits)
            if found.setdefault(address, chunk) != chunk:
                got = f"another one for chunk {chunk.number} of blob {chunk.blob}"
                raise damaged(at + start, "one record for each chunk", got)
        return found

    def _inode(self, node: Node) -> Inode:
        self._data.spend(node.tail_at - node.at, node.at)
        inode = Inode(
            node.nid,
            node.mode,
            node.nlink,
            node.uid if self._owned else 0,
            node.gid if self._owned else 0,
            node.mtime,
            node.rdev,
            xattrs=read_attributes(self._volume, node, _no_shared),
        )
        if node.is_regular:
            inode.size = node.size
            inode.chunks = self._file_chunks(node)
        elif node.is_symlink:
            self._data.spend(node.size, node.at)
            inode.target = read_target(self._volume, node)
        return inode

    def _file_chunks(self, node: Node) -> tuple[FileChunk, ...]:
        """Return the chunks of a file.

        There is an entry for each `chunk_size` bytes, whatever the inode says of its chunks: where
        all lie together, it says one, so that the kernel looks at the first entry only.
        """
        if not node.size:
            return ()
        step = self._extended.chunk_size
        group = self._group(node, step)
        count = aligned(node.size, step) // step
        at = aligned(node.tail_at, V6_CHUNK_ADDRESS.size)
        self._data.check(at, count * V6_CHUNK_ADDRESS.size, "chunks")
        self._data.count_chunks(count, at)
        raw = self._data.take(at, count * V6_CHUNK_ADDRESS.size, "chunks")
        found = []
        first = (0, 0)
        blocks = step >> self._volume.block_bits
        for number, (low, device, high, block) in enumerate(V6_CHUNK_ADDRESS.iter_unpack(raw)):
            here = at + number * V6_CHUNK_ADDRESS.size
            place = _HOLE if block == EROFS_NULL_ADDR else (device, block)
            inside = number % group
            if not inside:
                first = place
            elif place != (first if first == _HOLE else (first[0], first[1] + inside * blocks)):
                raise damaged(here, "a chunk that follows the one before it", place)
            if place == _HOLE:
                continue
            if not 0 < device <= len(self._blobs):
                raise damaged(here, f"a chunk of one of {len(self._blobs)} blobs", device)
            offset = number * step
            address = _Address(device - 1, low | high << 16, block)
            chunk = self._chunk(address, min(step, node.size - offset), here)
            found.append(FileChunk(offset, chunk))
        return tuple(found)

    def _group(self, node: Node, step: int) -> int:
        """Return how many entries the kernel takes for one; it would read elsewhere if in part."""
        if node.layout != EROFS_INODE_CHUNK_BASED or not node.data & EROFS_CHUNK_FORMAT_INDEXES:
            expected = "a file of chunks with indexes"
            raise damaged(node.at, expected, f"data layout {node.layout}, {node.data:#x}")
        bits = self._volume.block_bits + (node.data & EROFS_CHUNK_FORMAT_BLKBITS_MASK)
        group, rest = divmod(1 << bits, step)
        if rest:
            raise damaged(node.at, f"chunks of {step} bytes or more", 1 << bits)
        return group

    def _chunk(self, address: _Address, size: int, at: int) -> Chunk:
        chunk = self._chunks.get(address)
        if chunk is None:
            if self._has_table:
                got = f"{address.number} of blob {address.blob} at block {address.block}"
                raise damaged(at, "a chunk of the chunk table", got)
            chunk = self._chunks[address] = self._unlisted(address, size)
        blob = self._blobs[address.blob]
        end = chunk.uncompressed_offset + chunk.uncompressed_size
        if chunk.uncompressed_size != size:
            raise damaged(at, f"a chunk of {size} bytes", chunk.uncompressed_size)
        if end > aligned(blob.uncompressed_size, self._volume.block):
            expected = f"a chunk within the {blob.uncompressed_size} bytes of blob {address.blob}"
            raise damaged(at, expected, f"one up to byte {end}")
        return chunk

    def _unlisted(self, address: _Address, size: int) -> Chunk:
        """Return what is known of a chunk without a table; tars have their data as it is."""
        offset = address.block << self._volume.block_bits
        place, length = UNKNOWN, UNKNOWN
        if self._blobs[address.blob].features & BlobFeatures.TARFS:
            place, length = offset, size
        return Chunk(address.blob, address.number, b"", 0, place, length, offset, size, 0)


def _no_shared(id: int) -> Attribute:
    raise damaged(EROFS_SUPER_OFFSET, "no shared xattrs", f"one of id {id}")
