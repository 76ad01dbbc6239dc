"""Make a whole filesystem durable with one call; ask whether a file has lost what was written."""

from __future__ import annotations

import ctypes

from lamina.linux.libc import function

SYNC_FILE_RANGE_WAIT_BEFORE = 0x1
_BEHIND_EVERYTHING = (1 << 63) - 4096

_syncfs = function("syncfs", ctypes.c_int)
_sync_file_range = function(
    "sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint
)


def syncfs(fd: int) -> None:
    """Write back everything dirty on the filesystem that `fd` lies on, and wait for it.

    Linux >= 5.8 also reports write-back errors that happened since `fd` was opened.

    Raises:
        OSError: EIO, ENOSPC or EDQUOT: something could not be written; EBADF.
    """
    _syncfs(fd)


def check_writeback(fd: int) -> None:
    """Find out whether pages of the file were lost since this was last asked; costs a system call.

    The kernel writes pages whenever it likes. One that it cannot write stays in memory as if it
    were on the disk, and is read from there as something else once memory is short. Each open file
    description is told of it once, by this or by fsync(2).

    Args:
        fd: open in any mode; not the one whose fsync(2) is to tell of the same.

    Raises:
        OSError: EIO, ENOSPC: some of what was written is lost. Source: sync_file_range(2).
    """
    # It waits for the pages in the range that are being written: there are none.
    _sync_file_range(fd, _BEHIND_EVERYTHING, 1, SYNC_FILE_RANGE_WAIT_BEFORE)
