"""mallopt(3): how glibc's allocator deals with large blocks and with threads."""

from __future__ import annotations

import ctypes

from lamina.linux.libc import function

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_LARGE = 16 << 20
_ARENAS = 2


def reuse_large_blocks() -> None:
    """Have blocks of up to 16 MiB come from the heap and stay with the process when freed.

    By default blocks from 128 KiB on are mapped and unmapped each time, and their pages are
    cleared by the kernel each time. Other C libraries have no such call and are left as they are.
    """
    _mallopt(_M_MMAP_THRESHOLD, _LARGE)
    _mallopt(_M_TRIM_THRESHOLD, 4 * _LARGE)


def share_arenas() -> None:
    """Have threads share two heaps; to be called before there are any.

    By default nearly each gets one of its own, which keeps what was freed in it. Python's threads
    hardly ever allocate at the same time.
    """
    _mallopt(_M_ARENA_MAX, _ARENAS)


def _mallopt(parameter: int, value: int) -> None:
    try:
        mallopt = function("mallopt", ctypes.c_int, ctypes.c_int)
    except AttributeError:
        return
    mallopt(parameter, value)
