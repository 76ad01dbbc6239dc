"""Locks of whole files that belong to an open file, not to a process (fcntl(2), F_OFD_SETLK).

The kernel drops one when the last descriptor of that open file is closed, however that comes about.
Unlike flock(2), they can be looked at without being taken.
"""

from __future__ import annotations

import fcntl
import os
import struct

_FLOCK = struct.Struct("hhqqi4x")
"""`struct flock64`: type, whence, start, length (0 for all), pid (0 for these locks)."""


def try_lock(fd: int) -> bool:
    """Take the exclusive lock of a file that is open for writing; False if another has it.

    Raises:
        OSError: EBADF, ENOLCK; EINVAL on Linux < 3.15.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except BlockingIOError:
        return False
    return True
