"""The data of files and links on its way from an archive into blocks."""

from __future__ import annotations

from lamina.errors import ResourceExhausted
from lamina.formats.erofs.data import data_runs
from lamina.formats.ext4.extents import Piece, extent_map, nodes_needed, pieces_of
from lamina.formats.ext4.layout import BLOCK, MAX_FILE_BLOCKS
from lamina.formats.ext4.node import Node
from lamina.formats.ext4.runs import Run
from lamina.formats.ext4.space import Space
from lamina.formats.ext4.spool import Spool
from lamina.formats.tar import Entry, TarReader


class Data:
    """Takes blocks and fills them."""

    def __init__(self, space: Space, spool: Spool) -> None:
        self._space = space
        self._spool = spool

    def store(self, node: Node, reader: TarReader, entry: Entry, *, first: bool) -> None:
        """Give a regular file the body of the reader's current entry.

        Blocks of a sparse file that it says nothing of are holes.

        Args:
            node: the file.
            reader: of the archive.
            entry: its current one.
            first: take the blocks that are reserved for what comes first.

        Raises:
            ResourceExhausted: the device is full, or the file is larger than ext4 allows.
            FormatError: the archive ends within the body.
        """
        if entry.real_size > MAX_FILE_BLOCKS * BLOCK:
            raise ResourceExhausted("write ext4", hint="a file is larger than 16 TiB")
        node.size = entry.real_size
        if entry.sparse is not None:
            self._store_sparse(node, reader, entry, first=first)
            return
        if not entry.size:
            return
        runs = self._space.take(-(-entry.size // BLOCK), first=first)
        body = _Body(reader)
        left = entry.size
        for start, length in runs:
            part = min(left, length * BLOCK)
            self._spool.seek(start * BLOCK)
            body.copy(self._spool, part)
            left -= part
        self._spool.write(bytes(-entry.size % BLOCK))
        self.set_map(node, pieces_of(runs), first=first)

    def store_target(self, node: Node, target: bytes) -> None:
        """Give a link a target that does not fit into its inode."""
        runs = self._space.take(1)
        self._spool.put_block(runs[0][0], target.ljust(BLOCK, b"\0"))
        self.set_map(node, pieces_of(runs))

    def set_map(self, node: Node, pieces: list[Piece], *, first: bool = False) -> None:
        """Let an inode say where its data is; directories keep their blocks themselves."""
        tree: list[Run] = []
        if needed := nodes_needed(pieces):
            tree = self._space.take(needed, first=first)
        numbers = [block for start, length in tree for block in range(start, start + length)]
        node.map, nodes = extent_map(pieces, numbers)
        for block, content in zip(numbers, nodes, strict=True):
            self._spool.put_block(block, content)
        node.blocks = tree if node.directory else [(block, n) for _, block, n in pieces] + tree

    def _store_sparse(self, node: Node, reader: TarReader, entry: Entry, *, first: bool) -> None:
        pieces: list[Piece] = []
        body = _Body(reader)
        for run in data_runs(entry.sparse or (), BLOCK):
            logical = run[0][0] // BLOCK
            end = -(-sum(run[-1]) // BLOCK)
            taken = self._space.take(end - logical, first=first)
            areas = [Piece(logical + done, start, size) for done, start, size in pieces_of(taken)]
            self._fill(body, run, areas)
            pieces += areas
        self.set_map(node, pieces, first=first)

    def _fill(self, body: _Body, run: list[Run], areas: list[Piece]) -> None:
        """Write pieces of data to blocks, and zeros between them, each less than a block."""
        todo = [(start, start + length) for start, length in run][::-1]
        for logical, block, length in areas:
            position, stop = logical * BLOCK, (logical + length) * BLOCK
            self._spool.seek(block * BLOCK)
            while position < stop:
                start, end = todo.pop() if todo else (stop, stop)
                zeros = min(start, stop) - position
                self._spool.write(bytes(zeros))
                position += zeros
                part = max(min(end, stop) - position, 0)
                body.copy(self._spool, part)
                position += part
                if end > position:
                    todo.append((max(start, position), end))


class _Body:
    """The body of an entry, taken in pieces of given lengths."""

    def __init__(self, reader: TarReader) -> None:
        self._reader = reader
        self._part = memoryview(b"")

    def copy(self, spool: Spool, length: int) -> None:
        while length:
            self._part = self._part or self._reader.take()
            piece = self._part[:length]
            spool.write(piece)
            self._part = self._part[len(piece) :]
            length -= len(piece)
