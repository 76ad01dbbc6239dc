"""The native snapshotter's configuration: nothing but its place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lamina.snapshotters.plugin import Need, SnapshotterConfig, SnapshotterPlugin

if TYPE_CHECKING:
    from lamina.core.driver import Driver


class NativeConfig(SnapshotterConfig):
    """`[plugins."io.containerd.snapshotter.v1.native"]`."""

    __slots__ = ()


def _load(config: NativeConfig, root: Path) -> Driver:
    from lamina.snapshotters.native.driver import NativeDriver

    return NativeDriver(root)


def _check(config: NativeConfig, directory: Path) -> None:
    """Make a directory: of the machine it needs nothing else."""
    (directory / "snapshots").mkdir(mode=0o700)


def _reflink(directory: Path) -> str | None:
    from lamina.linux import probes

    return probes.reflink(directory)


PLUGIN = SnapshotterPlugin(
    id="native",
    config=NativeConfig,
    load=_load,
    check=_check,
    needs=(
        Need(
            what="shared blocks",
            tried="let two files share their blocks (FICLONE)",
            probe=_reflink,
            fix="put the root on btrfs, or on xfs made with `mkfs.xfs -m reflink=1`",
            without="every snapshot is a whole copy of its parent",
        ),
    ),
    rank=10,
    merit="needs nothing of the kernel; every snapshot is a copy",
)
