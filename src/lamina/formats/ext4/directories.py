"""The blocks of directories: names one after the other.

A name stays in its block. So a layer that adds or removes some changes only the blocks that have
them, or have room for them. Directories of more than two blocks get an index (`htree.py`).
"""

from __future__ import annotations

import stat
from collections.abc import Sequence

from lamina.formats.ext4.htree import build_index, index_block, place_in_index
from lamina.formats.ext4.layout import BLOCK, DIRENT, dirent_size
from lamina.formats.ext4.node import Directory, Node

_DOTS = 24
"""Bytes of `.` and `..`, with which the first block begins."""
_MIN_INDEXED = 3
"""Blocks of a directory that e2fsck would index, if it had none."""
_FILE_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}


def place_names(directory: Directory) -> list[int]:
    """Give new names places, and take them from removed ones.

    Returns:
        Indexes of the blocks that change, ascending; new ones are among them.
    """
    if directory.leaves:
        touched = place_in_index(directory)
    else:
        touched = _place_in_order(directory)
        if len(directory.names) >= _MIN_INDEXED:
            build_index(directory)
            touched.update(range(len(directory.names)))
    directory.changed.clear()
    return sorted(touched)


def _place_in_order(directory: Directory) -> set[int]:
    blocks, children = directory.names, directory.children
    waiting = dict(directory.changed)
    touched = set()
    for index, names in enumerate(blocks):
        hit = waiting.keys() & names
        if not hit:
            continue
        touched.add(index)
        for name in hit:
            del waiting[name]
        names[:] = [name for name in names if name in children]
    touched.update(_add(blocks, [name for name in waiting if name in children]))
    if not blocks:
        blocks.append([])
        touched.add(0)
    return touched


def _add(blocks: list[list[bytes]], names: list[bytes]) -> list[int]:
    """Put names into the first blocks that have room; return which."""
    touched: list[int] = []
    index, room = -1, -1
    for name in names:
        size = dirent_size(name)
        while room < size:
            index += 1
            if index == len(blocks):
                blocks.append([])
            room = BLOCK - sum(map(dirent_size, blocks[index])) - (0 if index else _DOTS)
        if not touched or touched[-1] != index:
            touched.append(index)
        blocks[index].append(name)
        room -= size
    return touched


def directory_block(node: Node, index: int) -> bytes:
    """Return one block of a directory. All children must have their numbers."""
    directory = node.directory
    assert directory is not None
    dots = [(b".", node), (b"..", directory.parent)]
    if directory.leaves:
        found = index_block(directory, index, lambda: _block(dots)[:_DOTS])
        if found is not None:
            return found
    children = directory.children
    entries = [] if index else dots
    return _block(entries + [(name, children[name]) for name in directory.names[index]])


def _block(entries: Sequence[tuple[bytes, Node]]) -> bytes:
    if not entries:
        return DIRENT.pack(0, BLOCK, 0, 0).ljust(BLOCK, b"\0")
    pack = DIRENT.pack
    parts = []
    left = BLOCK
    last = len(entries) - 1
    for place, (name, child) in enumerate(entries):
        size = left if place == last else dirent_size(name)
        kind = _FILE_TYPES[stat.S_IFMT(child.mode)]
        parts.append((pack(child.number, size, len(name), kind) + name).ljust(size, b"\0"))
        left -= size
    return b"".join(parts)
