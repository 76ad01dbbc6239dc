"""FS_IOC_FIEMAP (<linux/fiemap.h>): where on its device a file is."""

from __future__ import annotations

import array
import fcntl
import struct
from typing import NamedTuple

FS_IOC_FIEMAP = 0xC020660B
FIEMAP_EXTENT_LAST = 0x1
FIEMAP_EXTENT_UNKNOWN = 0x2
FIEMAP_EXTENT_NOT_ALIGNED = 0x100
"""Set also with FIEMAP_EXTENT_DATA_INLINE: what is there is no whole blocks."""

_HEAD = struct.Struct("=QQIIII")
"""`struct fiemap`: start, length, flags, mapped extents, room for extents, reserved."""
_EXTENT = struct.Struct("=QQQ2QI3I")
"""`struct fiemap_extent`: logical, physical, length, reserved, flags, reserved."""
assert (_HEAD.size, _EXTENT.size) == (32, 56)
_ROOM = 128
_ALL = 2**64 - 1


class FileExtent(NamedTuple):
    """A part of a file, in bytes.

    Attributes:
        logical: where in the file.
        physical: where on the device.
        length: how much.
    """

    logical: int
    physical: int
    length: int


def file_extents(fd: int) -> list[FileExtent]:
    """Return where on its device an open file is; parts that are nowhere, or inline, are left out.

    Raises:
        OSError: EOPNOTSUPP where the filesystem does not tell; what reading its metadata raises.
    """
    found: list[FileExtent] = []
    start = 0
    while True:
        buffer = array.array("B", _HEAD.pack(start, _ALL - start, 0, 0, _ROOM, 0))
        buffer.frombytes(bytes(_ROOM * _EXTENT.size))
        fcntl.ioctl(fd, FS_IOC_FIEMAP, buffer)
        count = _HEAD.unpack_from(buffer)[3]
        flags = FIEMAP_EXTENT_LAST
        for number in range(count):
            place = _HEAD.size + number * _EXTENT.size
            logical, physical, length, _, _, flags, *_ = _EXTENT.unpack_from(buffer, place)
            start = logical + length
            if not flags & (FIEMAP_EXTENT_UNKNOWN | FIEMAP_EXTENT_NOT_ALIGNED):
                found.append(FileExtent(logical, physical, length))
        if flags & FIEMAP_EXTENT_LAST:
            return found
