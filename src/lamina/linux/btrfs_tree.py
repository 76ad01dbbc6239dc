"""What the trees of a btrfs say: nested subvolumes, and what a subvolume has written.

All of it needs CAP_SYS_ADMIN. Layouts: <linux/btrfs_tree.h>; the trees are little-endian.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from lamina.core.cancel import check_cancelled
from lamina.linux.btrfs import FIRST_FREE_OBJECTID, LAST_FREE_OBJECTID
from lamina.linux.handles import open_by_handle

TREE_SEARCH_V2 = 0xC0709411
ROOT_TREE = 1
INODE_ITEM_KEY = 1
EXTENT_DATA_KEY = 108
ROOT_REF_KEY = 156

SEARCH = struct.Struct("=7Q4I4QQ")
"""struct btrfs_ioctl_search_args_v2 without its buffer: the search key, and the buffer's size."""
HEADER = struct.Struct("=QQQII")
ROOT_REF = struct.Struct("<QQH")
INODE_GENERATION = struct.Struct("<Q")
EXTENT = struct.Struct("<QQBBHB")
EXTENT_ON_DISK = struct.Struct("<QQ")
HANDLE = struct.Struct("=QQI")
_WITHOUT_PARENT = 0x4D
"""FILEID_BTRFS_WITHOUT_PARENT: what a file handle is made of, from include/linux/exportfs.h."""
_INLINE = 0
_MAX64 = (1 << 64) - 1
_MAX32 = (1 << 32) - 1
_BUFFER = 256 << 10


class Key(NamedTuple):
    """Where an item is in a tree; keys are ordered as tuples are."""

    object: int = 0
    type: int = 0
    offset: int = 0


LAST_KEY = Key(_MAX64, 255, _MAX64)


class Nested(NamedTuple):
    """A subvolume inside another: `name` in the directory `dir_id` of the subvolume `parent`."""

    id: int
    parent: int
    dir_id: int
    name: bytes


class Written(NamedTuple):
    """New inodes of a subvolume, and the bytes on disk of its new extents."""

    inodes: int
    size: int


def search(
    fd: int, tree: int, first: Key, last: Key = LAST_KEY, *, min_transaction: int = 0
) -> Iterator[tuple[Key, bytes]]:
    """Yield the items of a tree from `first` to `last`, both included.

    Args:
        fd: anything in the filesystem.
        tree: its id; 0 for the subvolume that `fd` is in.
        first: the least key.
        last: the greatest.
        min_transaction: leave out leaves that were last written before it.

    Raises:
        OSError: ENOENT: there is no such tree; EPERM.
        Cancelled, DeadlineExceeded: see `check_cancelled`.
    """
    room = _BUFFER
    while True:
        check_cancelled()
        buffer = bytearray(SEARCH.size + room)
        bounds = (first.object, last.object, first.offset, last.offset, min_transaction, _MAX64)
        SEARCH.pack_into(
            buffer, 0, tree, *bounds, first.type, last.type, _MAX32, 0, 0, 0, 0, 0, room
        )
        try:
            fcntl.ioctl(fd, TREE_SEARCH_V2, buffer)
        except OSError as error:
            if error.errno != errno.EOVERFLOW:
                raise
            room = max(SEARCH.unpack_from(buffer)[-1], 2 * room)
            continue
        count, at = SEARCH.unpack_from(buffer)[9], SEARCH.size
        if not count:
            return
        key = first
        for _ in range(count):
            _, object, offset, type, length = HEADER.unpack_from(buffer, at)
            at += HEADER.size
            key = Key(object, type, offset)
            yield key, bytes(buffer[at : at + length])
            at += length
        if key >= last:
            return
        first = _after(key)


def _after(key: Key) -> Key:
    if key.offset < _MAX64:
        return Key(key.object, key.type, key.offset + 1)
    if key.type < 255:
        return Key(key.object, key.type + 1, 0)
    return Key(key.object + 1, 0, 0)


def nested_in(fd: int, subvolume: int) -> list[Nested]:
    """Return the subvolumes whose names are directly in one, be they read-only or not."""
    first, last = Key(subvolume, ROOT_REF_KEY), Key(subvolume, ROOT_REF_KEY, _MAX64)
    found = []
    for key, item in search(fd, ROOT_TREE, first, last):
        directory, _, length = ROOT_REF.unpack_from(item)
        name = item[ROOT_REF.size : ROOT_REF.size + length]
        found.append(Nested(key.offset, subvolume, directory, name))
    return found


def open_inode(fd: int, tree: int, inode: int = FIRST_FREE_OBJECTID) -> int:
    """Open a directory of any subvolume by its number, on no path (needs CAP_DAC_READ_SEARCH too).

    Args:
        fd: anything in the filesystem.
        tree: id of the subvolume.
        inode: the directory; by default the subvolume's root.

    Raises:
        OSError: ENOENT, ESTALE: there is none.
    """
    key = Key(inode, INODE_ITEM_KEY)
    item = next((item for _, item in search(fd, tree, key, key)), None)
    if item is None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    generation = INODE_GENERATION.unpack_from(item)[0] & _MAX32
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    return open_by_handle(fd, _WITHOUT_PARENT, HANDLE.pack(inode, tree, generation), flags)


def written_since(fd: int, transaction: int) -> Written:
    """Measure what a subvolume has beyond what it had at the end of a transaction.

    Only metadata that has changed since is read. Data that waits to be written back is not
    counted, compressed data as it is on disk, shared extents once.

    Args:
        fd: in the subvolume.
        transaction: of the snapshot that it began as; 0 to count all there is.
    """
    inodes = size = 0
    extents: set[int] = set()
    first, last = Key(FIRST_FREE_OBJECTID), Key(LAST_FREE_OBJECTID, 255, _MAX64)
    for key, item in search(fd, 0, first, last, min_transaction=transaction + 1):
        if key.type == INODE_ITEM_KEY:
            inodes += INODE_GENERATION.unpack_from(item)[0] > transaction
        elif key.type == EXTENT_DATA_KEY:
            generation, _, _, _, _, type = EXTENT.unpack_from(item)
            if generation <= transaction:
                continue
            if type == _INLINE:
                size += len(item) - EXTENT.size
                continue
            start, length = EXTENT_ON_DISK.unpack_from(item, EXTENT.size)
            if start and start not in extents:  # 0 is a hole
                extents.add(start)
                size += length
    return Written(inodes, size)
