"""Trees of inodes: what an image is written from, and what a reader of another format makes.

File data is never in the tree: an inode says where its data lies, on which device.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

BLOCK = 4096
"""Bytes of a block: what data is aligned to, and file-backed mounts read in."""

HOLE = -1
"""As the `device` of an extent: zeros that lie nowhere."""
_NONE: Mapping[bytes, bytes] = MappingProxyType({})


class Extent(NamedTuple):
    """Where a run of a file's bytes lies.

    Attributes:
        length: bytes; of all but the last extent of a file, a multiple of the file's chunk size.
        device: number of the extra device, from 1 on; 0 for the image itself; HOLE for zeros.
        offset: byte on that device, a multiple of BLOCK.
    """

    length: int
    device: int
    offset: int


@dataclass(slots=True, eq=False)
class Inode:
    """A file of any type. The same object under several names is a hard link.

    Attributes:
        mode: type and permissions, as in `st_mode`.
        mtime: nanoseconds since the epoch, possibly negative.
        rdev: `os.makedev` number of a device; a whiteout is a character device 0.
        size: bytes of a regular file.
        extents: where the data of a regular file lies; their lengths sum up to `size`.
        target: what a symbolic link points to.
        children: names and inodes of a directory, without `.` and `..`, in any order.
        xattrs: full names (`b"user.a"`) and values.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    rdev: int = 0
    size: int = 0
    extents: Sequence[Extent] = ()
    target: bytes = b""
    children: dict[bytes, Inode] = field(default_factory=dict)
    xattrs: Mapping[bytes, bytes] = field(default_factory=lambda: _NONE)

    @property
    def is_directory(self) -> bool:
        """Whether it has children."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        """Whether it has data."""
        return stat.S_ISREG(self.mode)
