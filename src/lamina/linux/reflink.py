"""Copy file contents without copying bytes where the filesystem can, and without filling holes."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator

from lamina.core.cancel import check_cancelled

FICLONE = 0x40049409
"""ioctl_ficlone(2): _IOW(0x94, 9, int) as encoded on x86, Arm, RISC-V and s390."""

_NO_COPY_FILE_RANGE = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_CHUNK = 1 << 20
_RANGE = 1 << 27
"""Bytes that the kernel copies before anybody looks whether the copy is still wanted."""


def clone_file(src_fd: int, dst_fd: int) -> None:
    """Make the second file share all blocks of the first (FICLONE: btrfs, xfs, bcachefs, ...).

    Raises:
        OSError: EOPNOTSUPP, ENOTTY, EINVAL or EXDEV: these two files cannot share blocks.
    """
    fcntl.ioctl(dst_fd, FICLONE, src_fd)


def copy_data(src_fd: int, dst_fd: int) -> None:
    """Copy the bytes and the holes of one regular file into another, empty one.

    Works on offsets of its own: the position of `dst_fd` stays, that of `src_fd` moves. What is
    appended to the source meanwhile is not copied.

    Raises:
        OSError: from reading or writing; the target then holds a part.
        Cancelled, DeadlineExceeded: see `check_cancelled`; as above.
    """
    size = os.fstat(src_fd).st_size
    in_kernel = True
    for start, end in data_extents(src_fd, size):
        offset = start
        if in_kernel:
            offset = _copy_in_kernel(src_fd, dst_fd, start, end, start)
            in_kernel = offset == end
        _copy_bytes(src_fd, dst_fd, offset, end, offset)
    os.ftruncate(dst_fd, size)


def copy_range(src_fd: int, dst_fd: int, start: int, end: int, target: int) -> int:
    """Copy bytes [start, end) of a regular file to offset `target` of another one.

    Where both offsets are multiples of a block, filesystems that can share blocks do.

    Returns:
        How far it came: less than `end` only where the file ends before.

    Raises:
        as `copy_data`.
    """
    done = _copy_in_kernel(src_fd, dst_fd, start, end, target)
    return _copy_bytes(src_fd, dst_fd, done, end, target + done - start)


def data_extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield [start, end) of everything that is not a hole; all of it where that is unknown."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        try:
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno != errno.ENXIO:  # cut off since
                raise
            return
        if start < end:
            yield start, end


def _copy_in_kernel(src_fd: int, dst_fd: int, start: int, end: int, target: int) -> int:
    """Let the kernel copy; return how far it came (short: it cannot, or the source shrank)."""
    shift = target - start
    while start < end:
        check_cancelled()
        count = min(end - start, _RANGE)
        try:
            done = os.copy_file_range(src_fd, dst_fd, count, start, start + shift)
        except OSError as error:
            if error.errno not in _NO_COPY_FILE_RANGE:
                raise
            return start
        if done == 0:
            return start
        start += done
    return start


def _copy_bytes(src_fd: int, dst_fd: int, start: int, end: int, target: int) -> int:
    """Copy through memory; return how far it came (short: the source shrank)."""
    shift = target - start
    while start < end:
        check_cancelled()
        data = os.pread(src_fd, min(end - start, _CHUNK), start)
        if not data:
            break
        view = memoryview(data)
        while view:
            done = os.pwrite(dst_fd, view, start + shift)
            view = view[done:]
            start += done
    return start
