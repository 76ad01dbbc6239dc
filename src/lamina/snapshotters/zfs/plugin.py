"""The zfs snapshotter's plugin: its directory must be where a dataset is mounted."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.errors import SnapshotterSkipped
from lamina.snapshotters.plugin import Need, SnapshotterConfig, SnapshotterPlugin

if TYPE_CHECKING:
    from lamina.core.driver import Driver
    from lamina.linux.mountinfo import MountInfo

SETUP = "lamina zfs setup --loop SIZE"
_INSTALL = "apt-get install zfsutils-linux zfs-dkms, modprobe zfs, and run as root"
_NO_ZFS = {
    errno.ENOPKG: ("libzfs_core is not installed", _INSTALL),
    errno.ENOENT: ("the kernel has no ZFS", _INSTALL),
    errno.ENXIO: ("the kernel has no ZFS", _INSTALL),
    errno.ENODEV: ("the kernel has no ZFS", _INSTALL),
    errno.EACCES: ("/dev/zfs cannot be opened", "run as root"),
    errno.EPERM: ("/dev/zfs cannot be opened", "run as root, outside of containers"),
}


class ZfsConfig(SnapshotterConfig):
    """`[plugins."io.containerd.snapshotter.v1.zfs"]`, which has `root_path` only."""

    __slots__ = ()


def _load(config: ZfsConfig, root: Path) -> Driver:
    if reason := why_no_zfs():
        raise SnapshotterSkipped("zfs", reason=reason[0], fix=reason[1])
    dataset = dataset_at(root)
    from lamina.snapshotters.zfs.driver import ZfsDriver

    return ZfsDriver(root.absolute(), dataset)


def why_no_zfs() -> tuple[str, str] | None:
    """Return why ZFS cannot be used, and what helps, having opened it."""
    from lamina.linux import zfs

    try:
        zfs.load()
    except OSError as error:
        if error.errno not in _NO_ZFS:
            raise
        reason, fix = _NO_ZFS[error.errno]
        return f"{reason} ({error.filename}: {error.strerror})", fix
    return None


def dataset_at(root: Path) -> str:
    """Return the dataset that is mounted at a directory.

    Raises:
        SnapshotterSkipped: none is. One that is mounted above would do, but for its owner, who has
            other things in it; and two snapshotters in one would take each other's datasets.
    """
    mount = _mount_of(root)
    point = str(root.resolve())
    if mount is not None and mount.type == "zfs":
        if mount.point == point and mount.root == "/":
            return mount.source
        reason = f"{point} is in dataset {mount.source}, and not where one is mounted"
        fix = f"zfs create -o mountpoint={point} {mount.source}/lamina"
        raise SnapshotterSkipped("zfs", reason=reason, fix=fix)
    kind = f"on {mount.type}" if mount else "not there"
    raise SnapshotterSkipped(
        "zfs",
        reason=f"{point} is {kind}, and not where a dataset is mounted",
        fix=_fix(point),
    )


def _fix(directory: str) -> str:
    return f"`{SETUP}` (or `activate`), or zfs create -o mountpoint={directory} POOL/lamina"


def _mount_of(root: Path) -> MountInfo | None:
    """Return the mount that a path is on, or will be on once it exists."""
    from lamina.linux.mountinfo import read_mountinfo

    path = root.resolve()
    places = {str(place) for place in (path, *path.parents)}
    above = [mount for mount in read_mountinfo() if mount.point in places]
    # Of those at the nearest place, the last one covers the others.
    return max(reversed(above), key=lambda mount: len(mount.point), default=None)


def _module(directory: Path) -> str | None:
    reason = why_no_zfs()
    return reason[0] if reason else None


def _on_zfs(directory: Path) -> str | None:
    mount = _mount_of(directory)
    if mount is None or mount.type != "zfs":
        return f"it is {mount.type}" if mount else "there is no filesystem"
    return None


NEEDS = (
    Need(
        what="ZFS",
        tried="open /dev/zfs with libzfs_core",
        probe=_module,
        fix=_INSTALL,
    ),
    Need(
        what="a dataset of its own",
        tried="look which filesystem its directory is on",
        probe=_on_zfs,
        fix=_fix("DIRECTORY"),
    ),
)

PLUGIN = SnapshotterPlugin(
    id="zfs",
    config=ZfsConfig,
    load=_load,
    needs=NEEDS,
    rank=30,
    merit="a snapshot is a ZFS clone: made at once, with a limit of its own, checksummed",
    in_place=True,
)
