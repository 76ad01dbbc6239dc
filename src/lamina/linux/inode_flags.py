"""Inode flags that chattr(1) sets, such as immutable (ioctl_iflags(2))."""

from __future__ import annotations

import fcntl
import struct

FS_IOC_GETFLAGS = 0x80086601
"""_IOR('f', 1, long) as encoded on 64-bit x86, Arm, RISC-V and s390; the kernel reads an int."""
FS_IOC_SETFLAGS = 0x40086602
FS_APPEND_FL = 0x20
FS_IMMUTABLE_FL = 0x10
FS_TOPDIR_FL = 0x20000
"""On a directory: what is below one subdirectory has nothing to do with the others (ext2 to 4)."""

_FLAGS = struct.Struct("=i")


def get_flags(fd: int) -> int:
    """Return the FS_*_FL flags of an open file or directory.

    Raises:
        OSError: ENOTTY or EOPNOTSUPP where the filesystem has none.
    """
    raw = fcntl.ioctl(fd, FS_IOC_GETFLAGS, _FLAGS.pack(0))
    return int(_FLAGS.unpack(raw)[0])


def set_flags(fd: int, flags: int) -> None:
    """Replace the flags; immutable and append-only need CAP_LINUX_IMMUTABLE."""
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, _FLAGS.pack(flags))
