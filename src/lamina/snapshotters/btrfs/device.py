"""The device that a path's btrfs is mounted from: what containerd is told to mount."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lamina.errors import SnapshotterSkipped
from lamina.linux.btrfs import is_btrfs
from lamina.linux.mountinfo import MountInfo, read_mountinfo

SET_UP = (
    "lamina btrfs setup --loop SIZE makes a btrfs there, and `activate` mounts one that was made;"
    " or root_path on one that there is"
)


def device_of(directory: Path, *, called: str = "") -> str:
    """Return the device of the btrfs that a directory is on.

    Args:
        directory: exists.
        called: what errors call it, where its path says nothing to the user.

    Raises:
        SnapshotterSkipped: it is on no btrfs, or one whose device cannot be found.
    """
    resolved = directory.resolve()
    name = called or str(directory)
    fd = os.open(resolved, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        there = is_btrfs(fd)
    finally:
        os.close(fd)
    mount = _mount_of(str(resolved))
    if not there or mount is None or mount.type != "btrfs":
        kind = mount.type if mount and not there else "an unknown filesystem"
        raise SnapshotterSkipped("btrfs", reason=f"{name} is on {kind}, not btrfs", fix=SET_UP)
    if not _is_block_device(mount.source):
        reason = f"{name} is mounted from {mount.source}, which is no block device here"
        fix = "mount the btrfs from its device, and have that device in /dev"
        raise SnapshotterSkipped("btrfs", reason=reason, fix=fix)
    return mount.source


def _mount_of(path: str) -> MountInfo | None:
    """Return the mount that a path is in: the last of those with the longest mount point."""
    found = None
    for info in read_mountinfo():
        point = info.point.rstrip("/")
        if path != point and not path.startswith(f"{point}/"):
            continue
        if found is None or len(info.point) >= len(found.point):
            found = info
    return found


def _is_block_device(path: str) -> bool:
    try:
        return stat.S_ISBLK(Path(path).stat().st_mode)
    except OSError:
        return False
