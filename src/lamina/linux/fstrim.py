"""FITRIM (<linux/fs.h>): a mounted filesystem tells the device below what it has no use for."""

from __future__ import annotations

import fcntl
import os
import struct

FITRIM = 0xC0185879

_RANGE = struct.Struct("=QQQ")
"""`struct fstrim_range`: start, len and minlen, in bytes; len comes back as what was trimmed."""
_ALL = (0, 2**64 - 1, 0)


def trim_filesystem(mount_point: str | os.PathLike[str]) -> int:
    """Discard all free space of a mounted filesystem; needs CAP_SYS_ADMIN.

    Returns:
        The bytes discarded, as the filesystem counts them.

    Raises:
        OSError: EOPNOTSUPP: the filesystem or its device takes no discards; EROFS.
    """
    fd = os.open(mount_point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        answer = fcntl.ioctl(fd, FITRIM, _RANGE.pack(*_ALL))
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(mount_point)) from error
    finally:
        os.close(fd)
    _, trimmed, _ = _RANGE.unpack(answer)
    return int(trimmed)
