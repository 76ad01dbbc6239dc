"""fs-verity: files that never change again, each block of which is checked when it is read.

Documentation/filesystems/fsverity.rst and include/uapi/linux/fsverity.h. Needs Linux 5.4 and ext4
(made with `-O verity`) or f2fs, or Linux 5.15 and btrfs.
"""

from __future__ import annotations

import errno
import fcntl
import struct

FS_IOC_ENABLE_VERITY = 0x40806685
"""_IOW('f', 133, struct fsverity_enable_arg)"""
FS_IOC_MEASURE_VERITY = 0xC0046686
"""_IOWR('f', 134, struct fsverity_digest), of which the digest itself is no part."""
FS_VERITY_HASH_ALG_SHA256 = 1
BLOCK = 4096
"""Bytes that one hash is of; other sizes need Linux 6.3."""
ENABLE_ARG = struct.Struct("=IIIIQIIQ88x")
"""`struct fsverity_enable_arg`: version, hash_algorithm, block_size, salt_size, salt_ptr, sig_size,
reserved, sig_ptr, reserved."""
DIGEST = struct.Struct("=HH32s")
"""`struct fsverity_digest` with room for SHA-256: algorithm, size (of the room, then of it)."""


def enable_verity(fd: int) -> None:
    """Seal a file, which takes reading all of it; data and hashes are on the disk afterwards.

    Args:
        fd: opened for reading; nobody may have the file open for writing.

    Raises:
        OSError: ENOTTY, EOPNOTSUPP: kernel or filesystem has no fs-verity; ETXTBSY: somebody has
            it open for writing; EEXIST: it is sealed; EPERM: it is immutable.
    """
    said = ENABLE_ARG.pack(1, FS_VERITY_HASH_ALG_SHA256, BLOCK, 0, 0, 0, 0, 0)
    fcntl.ioctl(fd, FS_IOC_ENABLE_VERITY, said)


def measure_verity(fd: int) -> bytes | None:
    """Return the SHA-256 digest that a sealed file is checked by; None of one that is not sealed.

    Raises:
        OSError: ENOTTY, EOPNOTSUPP: as `enable_verity`; EOVERFLOW: it is sealed by a longer digest.
    """
    room = DIGEST.pack(0, DIGEST.size - 4, b"")
    try:
        found = fcntl.ioctl(fd, FS_IOC_MEASURE_VERITY, room)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return None
    _, size, digest = DIGEST.unpack(found)
    return bytes(digest[:size])
