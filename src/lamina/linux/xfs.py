"""ioctls of xfs (<xfs/xfs_fs.h>)."""

from __future__ import annotations

import ctypes
import fcntl
import struct

XFS_IOC_FSGEOMETRY_V1 = 0x80705864
XFS_IOC_FSGROWFSDATA = 0x4010586E

_GEOMETRY = struct.Struct("=8IQ72x")
assert _GEOMETRY.size == 112


class GrowfsData(ctypes.Structure):
    """`struct xfs_growfs_data`: 16 bytes."""

    _fields_ = (("newblocks", ctypes.c_uint64), ("imaxpct", ctypes.c_uint32))


def grow(mount_fd: int, size: int) -> None:
    """Let a mounted xfs grow to `size` bytes, which its device has.

    Raises:
        OSError: EINVAL: the device is smaller, or the filesystem larger.
    """
    geometry = _GEOMETRY.unpack(fcntl.ioctl(mount_fd, XFS_IOC_FSGEOMETRY_V1, bytes(112)))
    block_size, largest_percent = geometry[0], geometry[7]
    fcntl.ioctl(mount_fd, XFS_IOC_FSGROWFSDATA, GrowfsData(size // block_size, largest_percent))
