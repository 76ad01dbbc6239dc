"""Make a whole filesystem durable with one call."""

from __future__ import annotations

import ctypes

from lamina.linux.libc import function

_syncfs = function("syncfs", ctypes.c_int)


def syncfs(fd: int) -> None:
    """Write back everything dirty on the filesystem that `fd` lies on, and wait for it.

    Linux >= 5.8 also reports write-back errors that happened since `fd` was opened.

    Raises:
        OSError: EIO, ENOSPC or EDQUOT: something could not be written; EBADF.
    """
    _syncfs(fd)
