"""Directory entries as the kernel lists them (getdents64(2))."""

from __future__ import annotations

import ctypes
import os
import struct

from lamina.linux.libc import function

_BUFFER_BYTES = 4096
_DT_UNKNOWN = 0
_DIRENT64 = struct.Struct("=QqHB")
"""d_ino, d_off, d_reclen, d_type of `struct linux_dirent64`, in native byte order."""

_getdents64 = function("getdents64", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)


def types_are_known(directory: str | os.PathLike[str]) -> bool:
    """Tell whether the filesystem lists entries with their types (d_type).

    Looks at the first entries of a directory, which should have others than `.` and `..`.
    """
    buffer = ctypes.create_string_buffer(_BUFFER_BYTES)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        size = _getdents64(fd, buffer, len(buffer))
    finally:
        os.close(fd)
    offset = 0
    while offset < size:
        _, _, length, kind = _DIRENT64.unpack_from(buffer, offset)
        if kind == _DT_UNKNOWN:
            return False
        offset += length
    return True
