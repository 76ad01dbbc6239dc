"""What would be lost with a pool: what the snapshotter has recorded, and what others have there."""

from __future__ import annotations

from pathlib import Path

from lamina.core.units import format_size
from lamina.errors import FailedPrecondition
from lamina.linux.dm import DeviceMapper
from lamina.linux.dm.thin import MAX_DEVICE_ID
from lamina.meta.owners import Owners
from lamina.meta.snapshots import SnapshotStore
from lamina.pool.status import read_status
from lamina.snapshotters.devmapper.devices import FIRST_DEVICE_ID
from lamina.snapshotters.engine import DATABASE, OWNERS
from lamina.snapshotters.tree import remove_tree
from lamina.tools.lookup import installed
from lamina.tools.thin import thin_ls


class RecordedSnapshots:
    """The snapshotter's directory, which need not be there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def keys(self) -> list[str]:
        """Return the keys of all snapshots."""
        path = self.directory / DATABASE
        if not path.exists():
            return []
        store = SnapshotStore(path, boot="", owners=Owners(self.directory / OWNERS))
        try:
            return sorted(store.ids().values())
        finally:
            store.close()

    def require_closed(self) -> None:
        """Make sure that no process works on it.

        Raises:
            FailedPrecondition: one does.
        """
        tokens = [path.name for path in (self.directory / OWNERS).glob("*")]
        if tokens and any(map(Owners(self.directory / OWNERS).alive, tokens)):
            hint = "stop `lamina serve` and whatever else uses the snapshotter"
            raise FailedPrecondition("remove the records in", self.directory, hint=hint)

    def forget(self) -> None:
        """Remove the directory: without the pool, everything in it leads nowhere."""
        if self.directory.exists():
            remove_tree(self.directory)


def others_data(dm: DeviceMapper, pool: str, *, has_records: bool) -> str:
    """Say what somebody else, such as a containerd, has in an active pool; "" for nothing.

    Args:
        dm: device-mapper.
        pool: the pool.
        has_records: whether the snapshotter has ever used it: then some of it is its own, as the
            filesystem that new snapshots are copies of.
    """
    report = read_status(dm, pool)
    if not report.data_used:
        return ""
    if not installed("thin_ls"):
        size = format_size(report.data_used)
        return "" if has_records else f"{size} of data that somebody else has put there"
    first = FIRST_DEVICE_ID if has_records else MAX_DEVICE_ID + 1
    count = sum(id < first for id in _device_ids(dm, pool, report.metadata.node))
    noun = "device" if count == 1 else "devices"
    return f"{count} {noun} that somebody else has made in it" if count else ""


def _device_ids(dm: DeviceMapper, pool: str, metadata: Path) -> list[int]:
    """List the devices of an active pool, visible or not, by a snapshot of its metadata."""
    dm.message(pool, "reserve_metadata_snap")
    try:
        return thin_ls(metadata)
    finally:
        dm.message(pool, "release_metadata_snap")
