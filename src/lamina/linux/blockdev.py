"""ioctls of block devices (<linux/fs.h>)."""

from __future__ import annotations

import fcntl
import os
import struct

BLKDISCARD = 0x1277
BLKGETSIZE64 = 0x80081272

_RANGE = struct.Struct("=QQ")
_SIZE = struct.Struct("=Q")


def device_size(fd: int) -> int:
    """Return the size of an open block device in bytes."""
    answer = fcntl.ioctl(fd, BLKGETSIZE64, bytes(_SIZE.size))
    (size,) = _SIZE.unpack(answer)
    return int(size)


def discard(path: str | os.PathLike[str], *, start: int = 0) -> None:
    """Discard a block device from byte `start` to its end; what was there is gone.

    Raises:
        OSError: EOPNOTSUPP: the device takes no discards; EBUSY: it is mounted (Linux >= 5.8).
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_EXCL)
    try:
        fcntl.ioctl(fd, BLKDISCARD, _RANGE.pack(start, device_size(fd) - start))
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        os.close(fd)
