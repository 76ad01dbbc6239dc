"""The map from blocks of a file to blocks of the device: extents, and trees of them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lamina.formats.ext4.layout import BLOCK

_HEADER = struct.Struct("<4HI")
_MAGIC = 0xF30A
_EXTENT = struct.Struct("<IHHI")
_INDEX = struct.Struct("<IIHH")
_ROOT_SIZE = 60
_ONE = struct.Struct("<4HIIHHI36x")
"""What is in the inode of most files: a header and an extent."""
_IN_ROOT = (_ROOT_SIZE - _HEADER.size) // _EXTENT.size
IN_BLOCK = (BLOCK - _HEADER.size) // _EXTENT.size
_MAX_LENGTH = 1 << 15
"""Blocks of an extent that has data."""

NO_EXTENTS = _HEADER.pack(_MAGIC, 0, _IN_ROOT, 0, 0).ljust(_ROOT_SIZE, b"\0")


class Piece(NamedTuple):
    """A run of a file's blocks.

    Attributes:
        logical: first block, of the file.
        block: where that is on the device.
        length: blocks.
    """

    logical: int
    block: int
    length: int


class Map(NamedTuple):
    """What a file's inode has, and blocks besides.

    Attributes:
        root: 60 bytes of the inode.
        nodes: contents of the blocks of the tree; their number of the device is that at the same
            place in what `extent_map` got.
    """

    root: bytes
    nodes: Sequence[bytes]


def pieces_of(runs: Iterable[tuple[int, int]]) -> list[Piece]:
    """Return the pieces of a file without holes."""
    pieces = []
    logical = 0
    for start, length in runs:
        pieces.append(Piece(logical, start, length))
        logical += length
    return pieces


def nodes_needed(pieces: Sequence[Piece]) -> int:
    """Return how many blocks the tree has besides the inode."""
    if len(pieces) == 1 and pieces[0].length <= _MAX_LENGTH:
        return 0
    count = sum(-(-piece.length // _MAX_LENGTH) for piece in pieces)
    needed = 0
    while count > _IN_ROOT:
        count = -(-count // IN_BLOCK)
        needed += count
    return needed


def extent_map(pieces: Sequence[Piece], blocks: Sequence[int]) -> Map:
    """Return the map of a file.

    Args:
        pieces: ascending and apart.
        blocks: of the device, for the nodes of the tree: as many as `nodes_needed` says.
    """
    if len(pieces) == 1 and pieces[0].length <= _MAX_LENGTH:
        logical, block, length = pieces[0]
        return Map(_ONE.pack(_MAGIC, 1, _IN_ROOT, 0, 0, logical, length, 0, block), ())
    entries = _extents(pieces)
    nodes: list[bytes] = []
    depth = 0
    while len(entries) > _IN_ROOT:
        groups = [entries[at : at + IN_BLOCK] for at in range(0, len(entries), IN_BLOCK)]
        entries = []
        for group in groups:
            first = int.from_bytes(group[0][:4], "little")
            entries.append(_INDEX.pack(first, blocks[len(nodes)], 0, 0))
            nodes.append(_node(group, IN_BLOCK, depth, BLOCK))
        depth += 1
    return Map(_node(entries, _IN_ROOT, depth, _ROOT_SIZE), nodes)


def _extents(pieces: Sequence[Piece]) -> list[bytes]:
    entries = []
    for logical, block, length in pieces:
        for skipped in range(0, length, _MAX_LENGTH):
            part = min(length - skipped, _MAX_LENGTH)
            entries.append(_EXTENT.pack(logical + skipped, part, 0, block + skipped))
    return entries


def _node(entries: Sequence[bytes], most: int, depth: int, size: int) -> bytes:
    header = _HEADER.pack(_MAGIC, len(entries), most, depth, 0)
    return (header + b"".join(entries)).ljust(size, b"\0")
