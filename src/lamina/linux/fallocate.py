"""fallocate(2): taking ranges out of a file, as discards of a device that is made of it."""

from __future__ import annotations

import ctypes

from lamina.linux.libc import function

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

_fallocate = function("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Free what a file has in a range of bytes, which reads as zeros then; its size stays.

    Raises:
        OSError: EOPNOTSUPP: its filesystem cannot; ENOSPC, EIO.
    """
    _fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)
