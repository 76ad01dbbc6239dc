"""Copies of image files: shared blocks where the disk can, else bytes, holes staying holes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from lamina.core.cancel import check_cancelled
from lamina.core.disk_usage import disk_bytes
from lamina.core.units import format_size
from lamina.errors import ResourceExhausted
from lamina.linux.reflink import clone_file, copy_data

_NO_REFLINK = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS})
_CHUNK = 64 << 10
_ZEROS = bytes(_CHUNK)


def clone_image(source: Path, target: Path) -> bool:
    """Make the new file `target` share the blocks of `source`; False where the disk cannot.

    Then there is an empty file `target`.
    """
    with source.open("rb", buffering=0) as src, target.open("xb", buffering=0) as dst:
        try:
            clone_file(src.fileno(), dst.fileno())
        except OSError as error:
            if error.errno not in _NO_REFLINK:
                raise
            return False
    return True


def copy_image(source: Path, target: Path, *, durable: bool) -> None:
    """Copy the bytes of `source` into the empty file `target`.

    Args:
        source: nobody writes to it meanwhile.
        target: in the same or another filesystem.
        durable: return when the copy survives power loss.

    Raises:
        ResourceExhausted: there is no room, as is clear before the first byte.
    """
    with source.open("rb", buffering=0) as src, target.open("wb", buffering=0) as dst:
        _require_space(os.fstat(src.fileno()), dst.fileno(), target)
        copy_data(src.fileno(), dst.fileno())
        if durable:
            check_cancelled()
            os.fsync(dst.fileno())


def copy_without_zeros(source: Path, target: Path) -> None:
    """Copy a file and leave out what is all zeros, be it a hole or written to the disk.

    What `dd if=/dev/zero` or mkfs has written would otherwise be copied for each snapshot.
    """
    with source.open("rb", buffering=0) as src, target.open("xb", buffering=0) as dst:
        size = os.fstat(src.fileno()).st_size
        for start, end in _data(src.fileno(), size):
            check_cancelled()
            _copy_nonzero(src.fileno(), dst.fileno(), start, end)
        dst.truncate(size)


def _data(fd: int, size: int) -> list[tuple[int, int]]:
    found = []
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        end = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, end))
    return found


def _copy_nonzero(src: int, dst: int, start: int, end: int) -> None:
    while start < end:
        data = os.pread(src, min(_CHUNK, end - start), start)
        if not data:
            return
        view = memoryview(data)
        if view != _ZEROS[: len(data)]:
            written = 0
            while written < len(data):
                written += os.pwrite(dst, view[written:], start + written)
        start += len(data)


def _require_space(source: os.stat_result, target_fd: int, target: Path) -> None:
    """Refuse a copy that cannot fit, so that a full disk is not filled to the last block first."""
    there = os.fstatvfs(target_fd)
    free = there.f_bavail * there.f_frsize
    needed = disk_bytes(source)
    if needed > free:
        raise ResourceExhausted(
            f"copy {format_size(needed)} to {target}: its disk has {format_size(free)} left",
            hint="free space on the disk, or use one that shares blocks (xfs, btrfs)",
        )
