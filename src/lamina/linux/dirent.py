"""getdents64(2): directory entries with the type as the filesystem tells it."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator

from lamina.linux.libc import function

DT_UNKNOWN = 0
"""The filesystem does not keep the type: the inode has to be asked."""

_HEADER = struct.Struct("=QqHB")
"""`struct linux_dirent64`: d_ino, d_off, d_reclen, d_type; the name follows."""
_BUFFER = 32768

_getdents64 = function("getdents64", ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)


def entry_types(fd: int) -> Iterator[int]:
    """Yield the DT_* of each entry of an open directory, `.` and `..` included."""
    buffer = ctypes.create_string_buffer(_BUFFER)
    while length := _getdents64(fd, buffer, _BUFFER):
        offset = 0
        while offset < length:
            _, _, size, kind = _HEADER.unpack_from(buffer, offset)
            yield kind
            offset += size
