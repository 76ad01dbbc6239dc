"""The btrfs snapshotter's configuration: nothing but its place, which has to be on btrfs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lamina.errors import SnapshotterSkipped
from lamina.snapshotters.plugin import Need, SnapshotterConfig, SnapshotterPlugin

if TYPE_CHECKING:
    from lamina.core.driver import Driver


class BtrfsConfig(SnapshotterConfig):
    """`[plugins."io.containerd.snapshotter.v1.btrfs"]`."""

    __slots__ = ()


def _load(config: BtrfsConfig, root: Path) -> Driver:
    from lamina.snapshotters.btrfs.device import device_of

    root.mkdir(0o700, parents=True, exist_ok=True)
    device = device_of(root)
    from lamina.snapshotters.btrfs.driver import BtrfsDriver  # where there is a btrfs

    return BtrfsDriver(root, device)


def _probe(config: BtrfsConfig, directory: Path) -> None:
    from lamina.snapshotters.btrfs.device import SET_UP, device_of

    device = device_of(directory, called="its directory")
    from lamina.snapshotters.btrfs.trial import try_subvolume  # where there is a btrfs

    try:
        try_subvolume(directory, device)
    except OSError as error:
        raise SnapshotterSkipped(
            "btrfs",
            reason=f"making and mounting a subvolume of {device} fails: {error.strerror}",
            fix=f"run as root; {SET_UP}",
        ) from error


def _subvolumes(directory: Path) -> str | None:
    try:
        _probe(BtrfsConfig(), directory)
    except SnapshotterSkipped as skipped:
        return skipped.reason
    return None


def _quotas(directory: Path) -> str | None:
    from lamina.snapshotters.btrfs.trial import why_no_quotas

    return why_no_quotas(directory)


NEEDS = (
    Need(
        what="btrfs",
        tried="make a subvolume and a snapshot of it, and mount that",
        probe=_subvolumes,
        fix="lamina btrfs setup --loop SIZE, as root; or root_path on a btrfs that there is",
    ),
    Need(
        what="quotas",
        tried="read the state of the filesystem's quotas",
        probe=_quotas,
        fix="btrfs quota enable --simple DIRECTORY (Linux 6.7 or newer), or without --simple",
        without="no sizes by label (containerd.io/snapshot/max-size)",
    ),
)

PLUGIN = SnapshotterPlugin(
    id="btrfs",
    config=BtrfsConfig,
    load=_load,
    probe=_probe,
    needs=NEEDS,
    rank=50,
    merit="a snapshot is a subvolume that shares its parent's blocks; forks are instant",
)
