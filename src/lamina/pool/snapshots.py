"""What would be lost with a pool: what the snapshotter has recorded, and what others have there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lamina.core.units import format_size
from lamina.linux.dm import DeviceMapper
from lamina.pool.status import read_status
from lamina.provision.snapshots import RecordedSnapshots
from lamina.snapshotters.devmapper.devices import RANGE, Devices
from lamina.tools.lookup import installed
from lamina.tools.thin import thin_ls


class PoolSnapshots(RecordedSnapshots):
    """What the devmapper snapshotter has recorded, which need not be there."""

    def has_device(self) -> Callable[[int], bool]:
        """Return what tells whether a number in the pool is that of a device of this root's."""
        path = self.directory / "devices.sqlite"
        if not path.exists():
            return lambda id: False
        devices = Devices(path)
        try:
            numbers, starts = devices.numbers(), {*devices.ranges(), *devices.begun()}
        finally:
            devices.close()
        return lambda id: id in numbers or id - id % RANGE in starts


def others_data(dm: DeviceMapper, pool: str, snapshots: PoolSnapshots) -> str:
    """Say what somebody else, such as a containerd or another root, has in an active pool.

    Args:
        dm: device-mapper.
        pool: the pool.
        snapshots: what has its own devices there, such as the filesystem that new snapshots are
            copies of.

    Returns:
        "" for nothing.
    """
    report = read_status(dm, pool)
    if not report.data_used:
        return ""
    if not installed("thin_ls"):
        size = format_size(report.data_used)
        has_records = snapshots.directory.exists()
        return "" if has_records else f"{size} of data that somebody else has put there"
    is_own = snapshots.has_device()
    count = sum(not is_own(id) for id in _device_ids(dm, pool, report.metadata.node))
    noun = "device" if count == 1 else "devices"
    return f"{count} {noun} that somebody else has made in it" if count else ""


def _device_ids(dm: DeviceMapper, pool: str, metadata: Path) -> list[int]:
    """List the devices of an active pool, visible or not, by a snapshot of its metadata."""
    dm.message(pool, "reserve_metadata_snap")
    try:
        return thin_ls(metadata)
    finally:
        dm.message(pool, "release_metadata_snap")
