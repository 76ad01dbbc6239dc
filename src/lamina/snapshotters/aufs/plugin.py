"""The aufs snapshotter's configuration: nothing but its place."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.errors import SnapshotterSkipped
from lamina.snapshotters.plugin import Need, SnapshotterConfig, SnapshotterPlugin

if TYPE_CHECKING:
    from lamina.core.driver import Driver

log = logging.getLogger(__name__)


class AufsConfig(SnapshotterConfig):
    """`[plugins."io.containerd.snapshotter.v1.aufs"]`."""

    __slots__ = ()


def _load(config: AufsConfig, root: Path) -> Driver:
    from lamina.snapshotters.aufs.support import require_aufs

    root.mkdir(0o700, parents=True, exist_ok=True)
    try:
        dirperm1 = require_aufs(root)
    except SnapshotterSkipped:
        _remove_if_empty(root)
        raise
    from lamina.snapshotters.aufs.driver import AufsDriver  # hardly any kernel gets here

    log.warning("the snapshotter aufs is deprecated: kernels lose it; use overlayfs instead")
    return AufsDriver(root, dirperm1=dirperm1)


def _remove_if_empty(root: Path) -> None:
    try:
        root.rmdir()
    except OSError:
        pass  # it has snapshots, or is where somebody else keeps something


def _aufs(directory: Path) -> str | None:
    from lamina.snapshotters.aufs.support import require_aufs

    try:
        require_aufs(directory)
    except SnapshotterSkipped as skipped:
        return skipped.reason
    return None


PLUGIN = SnapshotterPlugin(
    id="aufs",
    config=AufsConfig,
    load=_load,
    needs=(
        Need(
            what="aufs mounts",
            tried="modprobe aufs, and mount one",
            probe=_aufs,
            fix="install a kernel with aufs, which no distribution has any more",
        ),
    ),
    rank=5,
    merit="deprecated: for kernels that have aufs and no overlay",
)
