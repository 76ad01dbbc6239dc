"""Indexes of directories: which block has the names of which hashes.

    block 0         `.` and `..`, then for each block of names its number and the lowest hash in it
    other blocks    names; or, where there are over 508 of those, parts of the index

A block that is full is split into two, of lower and of higher hashes.
"""

from __future__ import annotations

import struct
from bisect import bisect_right, insort
from collections.abc import Callable, Sequence

from lamina.errors import ResourceExhausted
from lamina.formats.ext4.layout import BLOCK, DIRENT, dirent_size
from lamina.formats.ext4.name_hash import HASH_VERSION, name_hash
from lamina.formats.ext4.node import Directory

_INFO = struct.Struct("<IBBBB")
"""Reserved; version of the hash, length of this record, levels between root and names, flags."""
_COUNTS = struct.Struct("<HHI")
"""Room and use in entries, and the block of the first, whose hash is 0 in the root."""
_ENTRY = struct.Struct("<II")
_IN_ROOT = (BLOCK - 24 - _INFO.size) // _ENTRY.size
_IN_NODE = (BLOCK - DIRENT.size) // _ENTRY.size
_FILLED_NODE = _IN_NODE * 7 // 8
_FILLED = BLOCK * 7 // 8
"""Of a new block of names, for a name more not to split it."""
_CONTINUED = 1
"""In the hash of a block: the one before it has names of that hash, too."""


class _Hashes(dict[bytes, int]):
    """Hashes of names, each computed once."""

    def __missing__(self, name: bytes) -> int:
        hash = self[name] = name_hash(name)
        return hash


def build_index(directory: Directory) -> None:
    """Put all names of a directory into blocks by their hashes; it must not have an index yet."""
    hashes = _Hashes()
    names = sorted(directory.children, key=lambda name: (hashes[name], name))
    directory.names = [[], []]
    directory.leaves = [(0, 1)]
    used = 0
    for place, name in enumerate(names):
        size = dirent_size(name)
        if used + size > _FILLED:
            start = _start(hashes[names[place - 1]], hashes[name])
            directory.leaves.append((start, len(directory.names)))
            directory.names.append([])
            used = 0
        directory.names[-1].append(name)
        used += size
    _make_nodes(directory)


def place_in_index(directory: Directory) -> set[int]:
    """Give changed names their places; return the indexes of all blocks that change."""
    hashes = _Hashes()
    touched: set[int] = set()
    leaves = len(directory.leaves)
    for name in directory.changed:
        at, present = _find(directory, name, hashes[name])
        names = directory.names[directory.leaves[at][1]]
        if present and name not in directory.children:
            names.remove(name)
        elif not present and name in directory.children:
            at = _make_room(directory, at, name, hashes, touched)
            names = directory.names[directory.leaves[at][1]]
            names.append(name)
        elif not present:
            continue
        touched.add(directory.leaves[at][1])
    if len(directory.leaves) > leaves:
        _make_nodes(directory)
        touched |= {0, *directory.nodes}
    return touched


def _find(directory: Directory, name: bytes, hash: int) -> tuple[int, bool]:
    """Return where a name is, as an index of `leaves`; or where it belongs."""
    leaves = directory.leaves
    first = at = bisect_right(leaves, (hash, len(directory.names))) - 1
    while name not in directory.names[leaves[at][1]]:
        at += 1
        if at == len(leaves) or leaves[at][0] != hash | _CONTINUED:
            return first, False
    return at, True


def _make_room(
    directory: Directory, at: int, name: bytes, hashes: _Hashes, touched: set[int]
) -> int:
    """Split a block if a name has no place in it; return where that belongs then."""
    start, block = directory.leaves[at]
    names = directory.names[block]
    if sum(map(dirent_size, names)) + dirent_size(name) <= BLOCK:
        return at
    names.sort(key=lambda name: (hashes[name], name))
    half = sum(map(dirent_size, names)) // 2
    split = 0
    while half > 0:
        half -= dirent_size(names[split])
        split += 1
    start = _start(hashes[names[split - 1]], hashes[names[split]])
    insort(directory.leaves, (start, len(directory.names)))
    touched |= {block, len(directory.names)}
    directory.names.append(names[split:])
    del names[split:]
    return at + 1 if hashes[name] >= start else at


def _start(before: int, hash: int) -> int:
    """Return what the index says of a block that begins with a hash, behind another one."""
    return hash | _CONTINUED if before == hash else hash


def _make_nodes(directory: Directory) -> None:
    """Give the index as many blocks between root and names as it needs; it keeps those it has."""
    if len(directory.leaves) <= _IN_ROOT and not directory.nodes:
        return
    needed = -(-len(directory.leaves) // _FILLED_NODE)
    if needed > _IN_ROOT:
        raise ResourceExhausted("write ext4", hint="a directory has too many names")
    while len(directory.nodes) < needed:
        directory.nodes.append(len(directory.names))
        directory.names.append([])


def index_block(directory: Directory, index: int, dots: Callable[[], bytes]) -> bytes | None:
    """Return a block of the index; None if the block has names.

    Args:
        directory: with an index.
        index: of the block.
        dots: returns the entries of `.` and `..`, the latter as long as the rest of the block.
    """
    nodes = directory.nodes
    if index and index not in nodes:
        return None
    parts = [
        directory.leaves[at : at + _FILLED_NODE]
        for at in range(0, len(directory.leaves), _FILLED_NODE)
    ]
    if index:
        head = DIRENT.pack(0, BLOCK, 0, 0)
        return (head + _entries(parts[nodes.index(index)], _IN_NODE)).ljust(BLOCK, b"\0")
    entries = directory.leaves
    if nodes:
        entries = [(part[0][0], node) for part, node in zip(parts, nodes, strict=True)]
    info = _INFO.pack(0, HASH_VERSION, _INFO.size, 1 if nodes else 0, 0)
    return (dots() + info + _entries(entries, _IN_ROOT)).ljust(BLOCK, b"\0")


def _entries(entries: Sequence[tuple[int, int]], most: int) -> bytes:
    head = _COUNTS.pack(most, len(entries), entries[0][1])
    return head + b"".join([_ENTRY.pack(*entry) for entry in entries[1:]])
