"""File handles: which inode it is, told apart from a later one of the same number."""

from __future__ import annotations

import ctypes
import errno

from lamina.linux.libc import AT_EMPTY_PATH, function

MAX_HANDLE_SZ = 128
_NO_HANDLES = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EOVERFLOW, errno.EPERM})


class FileHandle(ctypes.Structure):
    """`struct file_handle`, with room for the longest."""

    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * MAX_HANDLE_SZ),
    )


_name_to_handle_at = function(
    "name_to_handle_at",
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(FileHandle),
    ctypes.POINTER(ctypes.c_int),
    ctypes.c_int,
)

_open_by_handle_at = function(
    "open_by_handle_at", ctypes.c_int, ctypes.POINTER(FileHandle), ctypes.c_int
)


def file_handle(fd: int) -> bytes:
    """Return the handle of an open inode, O_PATH will do; b"" where its filesystem has none.

    Source: name_to_handle_at(2); no capability is needed.
    """
    handle = FileHandle(handle_bytes=MAX_HANDLE_SZ)
    mount_id = ctypes.c_int()
    try:
        _name_to_handle_at(fd, b"", ctypes.byref(handle), ctypes.byref(mount_id), AT_EMPTY_PATH)
    except OSError as error:
        if error.errno not in _NO_HANDLES:
            raise
        return b""
    return bytes(handle.f_handle[: handle.handle_bytes])


def open_by_handle(mount_fd: int, kind: int, handle: bytes, flags: int) -> int:
    """Open an inode by a handle, given anything open on its filesystem.

    Source: open_by_handle_at(2); needs CAP_DAC_READ_SEARCH in the first user namespace.

    Raises:
        OSError: ESTALE: there is no such inode.
    """
    structure = FileHandle(handle_bytes=len(handle), handle_type=kind)
    ctypes.memmove(structure.f_handle, handle, len(handle))
    return _open_by_handle_at(mount_fd, ctypes.byref(structure), flags)
