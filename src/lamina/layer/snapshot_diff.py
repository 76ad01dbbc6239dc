"""The layer that a snapshot adds to its parent, from whatever snapshotter."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lamina.core.snapshot import Snapshotter
from lamina.formats.compression import Compression
from lamina.layer.diff import Diff, write_diff, write_upper_diff
from lamina.layer.target import layer_target
from lamina.mount import temp_mount


def write_snapshot_diff(
    snapshotter: Snapshotter,
    key: str,
    write: Callable[[bytes], object],
    *,
    mounts: Path,
    compression: Compression = Compression.GZIP,
    source_date_epoch: int | None = None,
) -> Diff:
    """Write what an Active snapshot has changed as a layer; it may be mounted meanwhile.

    From an overlay's upper directory the cost is that of the changes. Other snapshots are compared
    with a temporary View of their parent, at the cost of walking both.

    Args:
        snapshotter: where the snapshot is.
        key: the snapshot.
        write: takes the layer's bytes.
        mounts: directory for temporary mounts.
        compression: of the layer.
        source_date_epoch: seconds since 1970 that no time in the layer is to exceed.

    Raises:
        NotFound: no such snapshot.
        FailedPrecondition: it is Committed.
        Aborted: something wrote to it meanwhile.
    """
    found = snapshotter.mounts(key)
    target = layer_target(found, rebase=False)
    if target is not None and target.overlay_whiteouts:
        return write_upper_diff(
            target.root,
            target.parents,
            write,
            compression=compression,
            source_date_epoch=source_date_epoch,
        )
    parent = snapshotter.stat(key).parent
    with (
        temp_mount(found, dir=mounts, read_only=True) as upper,
        _mounted_parent(snapshotter, parent, mounts) as lower,
    ):
        return write_diff(
            lower, upper, write, compression=compression, source_date_epoch=source_date_epoch
        )


@contextmanager
def _mounted_parent(snapshotter: Snapshotter, parent: str, mounts: Path) -> Iterator[Path | None]:
    if not parent:
        yield None
        return
    key = f"diff-{secrets.token_hex(6)} {parent}"
    view = snapshotter.view(key, parent)
    try:
        with temp_mount(view, dir=mounts, read_only=True) as lower:
            yield lower
    finally:
        snapshotter.remove(key)
