"""mallopt(3): how glibc's allocator deals with large blocks."""

from __future__ import annotations

import ctypes

from lamina.linux.libc import function

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGE = 16 << 20


def reuse_large_blocks() -> None:
    """Have blocks of up to 16 MiB come from the heap and stay with the process when freed.

    By default blocks from 128 KiB on are mapped and unmapped each time, and their pages are
    cleared by the kernel each time. Other C libraries have no such call and are left as they are.
    """
    try:
        mallopt = function("mallopt", ctypes.c_int, ctypes.c_int)
    except AttributeError:
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE)
    mallopt(_M_TRIM_THRESHOLD, 4 * _LARGE)
