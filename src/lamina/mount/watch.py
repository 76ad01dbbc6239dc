"""Writing to a filesystem that is mounted for that purpose from a file or device of its own.

Such writes end in two filesystems, and either may be full. What the outer one refuses is lost after
write(2) has taken it: only a sync tells.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lamina.core.mount import UNIONS, Mount
from lamina.core.units import format_size
from lamina.errors import (
    DataLoss,
    FailedPrecondition,
    Internal,
    LaminaError,
    ResourceExhausted,
)
from lamina.linux.sync import syncfs

_FULL_BELOW = 1 << 20
"""Bytes; the rest is too little to tell it from nothing."""
_MAY_MEAN_FULL = (FailedPrecondition, Internal, ResourceExhausted)
"""What the inner filesystem answers, itself full, or read-only since the outer one failed."""


def has_own_filesystem(mounts: Sequence[Mount]) -> bool:
    """Tell whether the last mount brings a filesystem from a device or file."""
    return bool(mounts) and mounts[-1].type not in {"bind", "rbind"} | UNIONS


@contextmanager
def watched_writes(mounts: Sequence[Mount], point: Path) -> Iterator[None]:
    """Make sure at the end of the body that all it wrote to `point` has been written.

    Args:
        mounts: what is mounted there; see `has_own_filesystem`.
        point: where.

    Raises:
        ResourceExhausted: one of the filesystems is full; says which.
        DataLoss: something could not be written.
    """
    fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    source = mounts[-1].source
    try:
        try:
            yield
            syncfs(fd)
        except (OSError, LaminaError) as error:
            if isinstance(error, OSError) or type(error) in _MAY_MEAN_FULL:
                _explain(fd, source, error)
            raise
    finally:
        os.close(fd)


def _explain(fd: int, source: str, error: Exception) -> None:
    """Raise what is to be said instead of the error; return where it says all itself."""
    hint = _full_disk(source) or _full_inside(fd)
    if hint:
        what = error.what if isinstance(error, LaminaError) else f"write to {source}"
        raise ResourceExhausted(what, getattr(error, "subject", ""), hint=hint) from error
    if isinstance(error, OSError):
        hint = "see dmesg"
        raise DataLoss(f"write to {source}: {error.strerror}", hint=hint) from error


def _full_disk(source: str) -> str:
    try:
        status = Path(source).stat()
    except OSError:
        return ""
    if not stat.S_ISREG(status.st_mode):
        return ""
    disk = os.statvfs(Path(source).parent)
    if disk.f_bavail * disk.f_frsize >= _FULL_BELOW:
        return ""
    return f"the disk that has {source} is full"


def _full_inside(fd: int) -> str:
    inside = os.fstatvfs(fd)
    size = format_size(inside.f_blocks * inside.f_frsize)
    if inside.f_bavail * inside.f_frsize < _FULL_BELOW:
        full = f"the snapshot's own filesystem of {size} is full"
    elif inside.f_files and not inside.f_ffree:
        full = f"the snapshot's own filesystem of {size} has no inodes left"
    else:
        return ""
    return f"{full}: configure a larger one (scratch_size of blockfile), and pull again"
