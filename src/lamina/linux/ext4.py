"""ioctls of ext4 (the kernel's Documentation/filesystems/ext4/ and fs/ext4/ext4.h)."""

from __future__ import annotations

import fcntl
import os
import struct

EXT4_IOC_RESIZE_FS = 0x40086610

_BLOCKS = struct.Struct("=Q")


def grow(mount_fd: int, size: int) -> None:
    """Let a filesystem that is mounted as ext4 grow to `size` bytes, which its device has.

    Needs CAP_SYS_RESOURCE. The inode tables of what is new are written by a thread of the kernel's
    while it is mounted, where it has checksums of groups.

    Raises:
        OSError: EINVAL: the device is smaller, or the filesystem larger; EOPNOTSUPP: it was made
            without what growing needs; EPERM: it has errors; ENOTTY: it is mounted as ext2.
    """
    blocks = size // os.fstatvfs(mount_fd).f_bsize
    fcntl.ioctl(mount_fd, EXT4_IOC_RESIZE_FS, _BLOCKS.pack(blocks))
