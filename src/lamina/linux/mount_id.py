"""Which mount a path leads to, by a number that the kernel never gives to another: statx(2)."""

from __future__ import annotations

import ctypes
import struct

from lamina.linux.libc import AT_FDCWD, Pathish, encoded, function

AT_STATX_DONT_SYNC = 0x4000
STATX_MNT_ID_UNIQUE = 0x00004000
STATX_BYTES = 256
STX_MASK = struct.Struct("=I")
STX_MNT_ID = struct.Struct("=144xQ")
"""`stx_mnt_id` of `struct statx`, at byte 0x90."""

_statx = function(
    "statx",
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_char_p,
    path=1,
)


def unique_mount_id(path: Pathish) -> int:
    """Return the number of the mount that a path is on, on top of it if it is a mount point.

    Numbers grow with each mount, from the start of the machine. A copy of a mount, as in a new
    mount namespace, has one of its own. Needs Linux 6.8; 0 where the kernel is older.

    Raises:
        OSError: as stat(2).
    """
    buffer = ctypes.create_string_buffer(STATX_BYTES)
    _statx(AT_FDCWD, encoded(path), AT_STATX_DONT_SYNC, STATX_MNT_ID_UNIQUE, buffer)
    if not STX_MASK.unpack_from(buffer)[0] & STATX_MNT_ID_UNIQUE:
        return 0
    return int(STX_MNT_ID.unpack_from(buffer)[0])
