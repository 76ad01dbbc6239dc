"""How the btrfs is doing that the snapshotter has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from lamina.btrfs.record import Quota, Record
from lamina.btrfs.volume import TYPE, Volume, mount_of, quota_of
from lamina.core.disk_usage import disk_bytes
from lamina.errors import NotFound
from lamina.linux.mountinfo import MountInfo
from lamina.provision.snapshots import RecordedSnapshots


class FileReport(NamedTuple):
    """The file of one that was set up.

    Attributes:
        path: of it.
        size: bytes that it may take; of the record, where there is no file.
        allocated: bytes that it takes of its disk.
    """

    path: Path
    size: int
    allocated: int


class Space(NamedTuple):
    """A mounted filesystem.

    Attributes:
        device: what is mounted.
        total: bytes of all.
        used: bytes in use, as df(1) has them.
        free: bytes that can be written yet.
        quota: its quotas.
        snapshots: how many the snapshotter has recorded.
        mounts: where else it is mounted.
    """

    device: str
    total: int
    used: int
    free: int
    quota: Quota
    snapshots: int
    mounts: tuple[str, ...]


class Report(NamedTuple):
    """What there is.

    Attributes:
        place: the snapshotter's directory.
        state: of the record: `ready`, `making`, `removing`; `other` for a btrfs that was not set
            up here.
        file: None for one that was not set up here.
        space: None while it is not mounted.
    """

    place: Path
    state: str
    file: FileReport | None
    space: Space | None


def read_status(record: Record | None, place: Path) -> Report:
    """Report on the btrfs that was set up, or else on the one on which the place is.

    Args:
        record: of what was set up.
        place: the snapshotter's directory by the configuration.

    Raises:
        NotFound: nothing was set up, and the place is on no btrfs.
    """
    if record is None:
        place = place.resolve()
        around = mount_of(place)
        if around.type != TYPE:
            hint = "none was set up; make one with `lamina btrfs setup --loop SIZE`"
            raise NotFound("find a btrfs for", place, hint=hint)
        nearest = next(path for path in (place, *place.parents) if path.is_dir())
        return Report(place, "other", None, _space(place, nearest, around, []))
    volume = Volume(record, lambda _: None)
    file = volume.file.stat() if volume.file.exists() else None
    own = volume.mounted()
    return Report(
        volume.place,
        record.state,
        FileReport(
            volume.file,
            file.st_size if file else record.size,
            disk_bytes(file) if file else 0,
        ),
        None if own is None else _space(volume.place, volume.place, own, volume.users()),
    )


def _space(place: Path, directory: Path, mount: MountInfo, users: list[MountInfo]) -> Space:
    found = os.statvfs(directory)
    return Space(
        mount.source,
        found.f_blocks * found.f_frsize,
        (found.f_blocks - found.f_bfree) * found.f_frsize,
        found.f_bavail * found.f_frsize,
        quota_of(directory),
        len(RecordedSnapshots(place).keys()),
        tuple(info.point for info in users),
    )
