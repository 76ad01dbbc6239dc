"""openat2(2): open a path with a say in how every step of it is resolved (Linux >= 5.6)."""

from __future__ import annotations

import ctypes
import errno
import os

from lamina.linux.libc import Pathish, encoded, system_call

RESOLVE_NO_XDEV = 0x01
"""Cross no mount point, upwards or downwards."""
RESOLVE_NO_MAGICLINKS = 0x02
"""Follow no link of the /proc/PID/fd kind."""
RESOLVE_NO_SYMLINKS = 0x04
"""Follow no symbolic link at all; implies RESOLVE_NO_MAGICLINKS."""
RESOLVE_BENEATH = 0x08
"""Fail with EXDEV where the path would leave the starting directory."""
RESOLVE_IN_ROOT = 0x10
"""Take the starting directory for `/`, as chroot(2) would."""
RESOLVE_CACHED = 0x20
"""Fail with EAGAIN where the disk would have to be asked (Linux >= 5.12)."""

_SYS_OPENAT2 = 437
_RACES = 128


class OpenHow(ctypes.Structure):
    """`struct open_how` of <linux/openat2.h>, version 0: 24 bytes."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_openat2 = system_call(
    _SYS_OPENAT2,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(OpenHow),
    ctypes.c_size_t,
    path=1,
)


def openat2(path: Pathish, flags: int, *, dir_fd: int, mode: int = 0, resolve: int = 0) -> int:
    """Open `path` below `dir_fd` and return the descriptor; O_CLOEXEC is always set.

    RESOLVE_BENEATH and RESOLVE_IN_ROOT fail with EAGAIN when a rename anywhere on the system
    makes `..` unsafe for a moment; such a race is tried again up to 128 times.

    Args:
        path: what to open.
        flags: O_*; unlike open(2), unknown ones are an error (EINVAL).
        dir_fd: where a relative path, and with RESOLVE_IN_ROOT any path, starts.
        mode: permission bits of a new file; must be 0 where none can be made.
        resolve: RESOLVE_*.

    Raises:
        OSError: EXDEV and ELOOP are what `resolve` forbids; ENOSYS is a kernel older than 5.6
            or a seccomp filter.
    """
    how = OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    raw = encoded(path)
    for _ in range(_RACES):
        try:
            return _openat2(dir_fd, raw, ctypes.byref(how), ctypes.sizeof(how))
        except OSError as error:
            if error.errno == errno.ENOSYS:
                raise OSError(
                    errno.ENOSYS,
                    "openat2 is missing: it needs Linux 5.6 or newer and a seccomp filter that "
                    "lets it through",
                    error.filename,
                ) from error
            if error.errno != errno.EAGAIN or resolve & RESOLVE_CACHED:
                raise
    raise OSError(errno.EAGAIN, "the tree is being renamed all the time", os.fsdecode(raw))
