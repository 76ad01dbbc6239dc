"""`Ext4Layers`: one filesystem that the layers of an image are applied to, and what each writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import BinaryIO

from lamina.formats.ext4.data import Data
from lamina.formats.ext4.directories import directory_block, place_names
from lamina.formats.ext4.entries import Entries
from lamina.formats.ext4.extents import pieces_of
from lamina.formats.ext4.geometry import geometry
from lamina.formats.ext4.groups import Groups
from lamina.formats.ext4.inodes import Inodes
from lamina.formats.ext4.layout import BLOCK, DESCRIPTORS_PER_BLOCK
from lamina.formats.ext4.node import Node
from lamina.formats.ext4.runs import Run, append, joined
from lamina.formats.ext4.space import Space
from lamina.formats.ext4.spool import Spool
from lamina.formats.ext4.tree import inside
from lamina.formats.ext4.xattrs import store
from lamina.formats.lsmt.mappings import Extent
from lamina.formats.stream import ChunkStream
from lamina.formats.tar import TarReader
from lamina.formats.tar.layer import clean

FIXED_UUID = bytes.fromhex("6c616d696e6145d48ad14c6179657273")
"""Of all filesystems whose caller names none."""
_MAX_ENTRIES = 20_000_000


@dataclass(frozen=True, slots=True)
class Applied:
    """What a layer wrote.

    Attributes:
        extents: whole blocks, ascending and apart; layer 0 is the spool, in which each lies where
            it does on the device.
        warnings: what was left out, as sentences; the first few only.
    """

    extents: list[Extent]
    warnings: tuple[str, ...]


class Ext4Layers:
    """An ext4 filesystem that layers of an image are applied to, one after the other.

    It needs neither a kernel nor root, and makes the same bytes every time.

    Memory: about a kilobyte for each inode, as long as the object lives; no data.
    """

    def __init__(
        self,
        size: int,
        spool: BinaryIO,
        *,
        uuid: bytes = FIXED_UUID,
        max_entries: int = _MAX_ENTRIES,
    ) -> None:
        """Begin with an empty filesystem; the first layer brings its metadata.

        Args:
            size: bytes of the device, from 1 MiB to 16 TiB.
            spool: an empty file that can seek. It gets blocks at their places on the device, and
                is neither closed nor flushed.
            uuid: 16 bytes, of the filesystem.
            max_entries: members of one archive.

        Raises:
            InvalidArgument: no filesystem can have that size.
        """
        self._places = geometry(size)
        self._spool = Spool(spool)
        self._space = Space(self._places)
        self._inodes = Inodes(self._places)
        self._groups = Groups(self._places, self._space, self._inodes, uuid)
        self._data = Data(self._space, self._spool)
        self._entries = Entries(self._data, max_entries)
        self._inodes.set_root(self._entries.tree.root)
        self._is_new = True

    def apply(
        self,
        tar: Iterator[bytes],
        *,
        prioritized: Sequence[bytes] = (),
        leave_out: AbstractSet[bytes] = frozenset(),
    ) -> Applied:
        """Apply a layer and return what it wrote. After an error the object is of no more use.

        Args:
            tar: an uncompressed archive, in pieces of any size. It is read to its end, and what
                follows the end of the archive as well.
            prioritized: paths of regular files that get lower blocks than all others, in the order
                of the archive, as far as a sixteenth of the free blocks is enough for them.
            leave_out: paths whose entries are passed over.

        Raises:
            FormatError: the archive is damaged, cut off, or asks for what cannot be.
            ResourceExhausted: the device is full, or a limit is exceeded.
        """
        stream = ChunkStream(tar)
        self._space.begin(reserve=bool(prioritized))
        first = frozenset(clean(path) for path in prioritized)
        self._entries.run(TarReader(stream), first, leave_out)
        stream.drain()
        self._drop()
        self._number()
        self._write_attributes()
        self._write_directories()
        self._entries.tree.changed.clear()
        self._inodes.finish()
        runs = self._space.finish()
        runs += self._write_metadata()
        self._spool.flush()
        return Applied([_extent(run) for run in joined(runs)], tuple(self._entries.warnings))

    def _drop(self) -> None:
        """Free what the inodes had that lost their last name."""
        for node in self._entries.tree.dropped:
            self._space.give_back(node.all_runs())
            if node.number:
                self._inodes.give_back(node)
        self._entries.tree.dropped.clear()

    def _number(self) -> None:
        self._inodes.begin_numbers()
        for node in self._entries.tree.changed:
            if node.number:
                self._inodes.touch(node)
            else:
                self._inodes.number(node)

    def _write_attributes(self) -> None:
        for node in self._entries.tree.changed:
            if node.xattrs:
                self._write_attributes_of(node)

    def _write_attributes_of(self, node: Node) -> None:
        stored = store(node.xattrs, node.mode)
        node.inline = stored.inline
        if node.xattr_block and stored.block:
            self._space.rewrite(node.xattr_block)
        elif stored.block:
            ((node.xattr_block, _),) = self._space.take(1)
        elif node.xattr_block:
            self._space.give_back([(node.xattr_block, 1)])
            node.xattr_block = 0
        if stored.block:
            self._spool.put_block(node.xattr_block, stored.block)

    def _write_directories(self) -> None:
        for node in self._entries.tree.changed:
            if node.directory and (node.directory.changed or not node.directory.names):
                self._write_directory(node)

    def _write_directory(self, node: Node) -> None:
        directory = inside(node)
        before = len(directory.names)
        touched = place_names(directory)
        if (added := len(directory.names) - before) > 0:
            directory.runs = _lengthened(directory.runs, self._space.take(added))
            self._space.give_back(node.blocks or [])
            self._data.set_map(node, pieces_of(directory.runs))
        places = _Places(directory.runs)
        for index in touched:
            block = places.block(index)
            self._spool.put_block(block, directory_block(node, index))
            if index < before:
                self._space.rewrite(block)

    def _write_metadata(self) -> list[Run]:
        """Write what describes the groups; return the blocks."""
        places, space, inodes = self._places, self._space, self._inodes
        block_bitmaps, inode_bitmaps = space.bitmaps, inodes.bitmaps
        written = []
        groups = block_bitmaps.changed | inode_bitmaps.changed
        descriptors = {group // DESCRIPTORS_PER_BLOCK for group in groups}
        if self._is_new:
            descriptors = set(range(places.block_bitmaps - 1))
            self._is_new = False
        if descriptors:
            written.append((0, self._groups.first_block()))
        written += [(1 + index, self._groups.block(index)) for index in sorted(descriptors)]
        for group in sorted(block_bitmaps.changed):
            written.append((places.block_bitmap(group), bytes(block_bitmaps.bitmap(group))))
        for group in sorted(inode_bitmaps.changed):
            written.append((places.inode_bitmaps + group, bytes(inode_bitmaps.bitmap(group))))
        runs = []
        for block, content in written:
            self._spool.put_block(block, content)
            runs.append((block, 1))
        for index in sorted(inodes.changed):
            self._spool.put_block(places.inode_tables + index, inodes.block(index))
            runs.append((places.inode_tables + index, 1))
        for changed in (block_bitmaps.changed, inode_bitmaps.changed, inodes.changed):
            changed.clear()
        return runs


class _Places:
    """Blocks of a directory, by their index in it; asked for in ascending order."""

    def __init__(self, runs: list[Run]) -> None:
        self._pieces = pieces_of(runs)[::-1]

    def block(self, index: int) -> int:
        while self._pieces[-1].logical + self._pieces[-1].length <= index:
            self._pieces.pop()
        return self._pieces[-1].block + index - self._pieces[-1].logical


def _lengthened(runs: list[Run], added: list[Run]) -> list[Run]:
    """Return runs with others behind them; what goes on is one run."""
    found = list(runs)
    for start, length in added:
        append(found, start, length)
    return found


def _extent(run: Run) -> Extent:
    start, length = run
    return Extent(start * BLOCK, length * BLOCK, 0, start * BLOCK)
