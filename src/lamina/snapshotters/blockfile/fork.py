"""A copy of an image file that is mounted and written to, as it is at one moment.

First everything that was written through the mount is brought into the file (syncfs). Sharing its
blocks then takes the file as it is between two writes of the loop device, whose order is that of
the filesystem's journal: the copy is what a power cut would leave, and its journal is replayed when
it is mounted. So nothing is frozen, and no kill can leave a filesystem frozen (FIFREEZE ends with
nobody's death).

Where blocks cannot be shared bytes are copied, which takes a while. The copy is good if nothing was
written meanwhile, as the loop device's counters tell; else it is made again.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import NamedTuple

from lamina.errors import FailedPrecondition
from lamina.linux import loop
from lamina.linux.sync import syncfs
from lamina.snapshotters.blockfile.copy import clone_image, copy_image
from lamina.snapshotters.blockfile.image import is_being_written, mounted

TRIES = 4
_HINT = "unmount it, pause what writes to it, or use a disk that shares blocks (xfs, btrfs)"


class _Writes(NamedTuple):
    """What changes when a file is written to, directly or through its loop device."""

    mtime_ns: int
    activity: loop.Activity | None


def fork_image(source: Path, target: Path, fs_type: str) -> bool:
    """Make the new file `target` like `source`, which may be mounted.

    Returns:
        Whether they share their blocks; else the copy survives power loss.

    Raises:
        FailedPrecondition: it is written to all the time, and blocks cannot be shared.
        ResourceExhausted: there is no room.
    """
    with loop.shared(source) as device:
        if device is not None:
            _flush(device.path, fs_type)
        if clone_image(source, target):
            return True
    for _ in range(TRIES):
        if _copied_unchanged(source, target, fs_type):
            return False
    raise FailedPrecondition("fork image file that is written to all the time", source, hint=_HINT)


def _copied_unchanged(source: Path, target: Path, fs_type: str) -> bool:
    """Copy, and tell whether the copy is the file as it was at one moment."""
    with loop.shared(source) as device:
        if device is not None:
            _flush(device.path, fs_type)
        elif is_being_written(source):
            raise FailedPrecondition("fork image file that a process has open", source, hint=_HINT)
        before = _writes(source, device)
        if before.activity is not None and before.activity.in_flight:
            return False
        copy_image(source, target, durable=True)
        return _writes(source, device) == before and (device is not None or not _is_bound(source))


def _writes(file: Path, device: loop.LoopDevice | None) -> _Writes:
    activity = None if device is None else loop.activity(device)
    return _Writes(file.stat().st_mtime_ns, activity)


def _is_bound(file: Path) -> bool:
    with loop.shared(file) as device:
        return device is not None


def _flush(device: str, fs_type: str) -> None:
    """Write back what the filesystem on a device has in memory."""
    try:
        with mounted(device, fs_type) as root:  # once more, which gives the same filesystem
            syncfs(root)
    except OSError as error:
        if error.errno != errno.EBUSY:  # it is mounted read-only
            raise
