"""The layer that a snapshot adds to its parent, from whatever snapshotter."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from lamina.core.labels import GC_ROOT
from lamina.core.mount import Mount
from lamina.core.snapshot import Kind, Snapshotter
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
    against: str | None = None,
    compression: Compression = Compression.GZIP,
    source_date_epoch: int | None = None,
) -> Diff:
    """Write what a snapshot has changed as a layer; it may be mounted meanwhile.

    From an overlay's upper directory the cost is that of the changes. Other snapshots are compared
    with their parent, both mounted, at the cost of walking both.

    Args:
        snapshotter: where the snapshot is.
        key: the snapshot.
        write: takes the layer's bytes.
        mounts: directory for temporary mounts.
        against: the snapshot to compare with; None for the parent.
        compression: of the layer.
        source_date_epoch: seconds since 1970 that no time in the layer is to exceed.

    Raises:
        NotFound: no such snapshot.
        Aborted: something wrote to it meanwhile.
    """
    found = snapshotter.stat(key)
    if found.kind == Kind.ACTIVE and against is None:
        found_mounts = snapshotter.mounts(key)
        target = layer_target(found_mounts, rebase=False)
        # fuse-overlayfs keeps more than overlayfs's marks there, and only it knows what they mean.
        if target is not None and found_mounts[0].type == "overlay":
            return write_upper_diff(
                target.root,
                target.parents,
                write,
                compression=compression,
                source_date_epoch=source_date_epoch,
            )
    base = found.parent if against is None else against
    with ExitStack() as stack:
        upper = stack.enter_context(mounted_snapshot(snapshotter, key, mounts))
        lower = stack.enter_context(mounted_snapshot(snapshotter, base, mounts)) if base else None
        return write_diff(
            lower, upper, write, compression=compression, source_date_epoch=source_date_epoch
        )


@contextmanager
def mounted_snapshot(snapshotter: Snapshotter, key: str, mounts: Path) -> Iterator[Path]:
    """Mount a snapshot read-only for the body, a Committed one by a temporary View of it.

    Args:
        snapshotter: where the snapshot is.
        key: the snapshot.
        mounts: directory for the mount.

    Raises:
        NotFound: no such snapshot.
    """
    if snapshotter.stat(key).kind != Kind.COMMITTED:
        with temp_mount(snapshotter.mounts(key), dir=mounts, read_only=True) as path:
            yield path
        return
    with (
        temporary_view(snapshotter, key) as found,
        temp_mount(found, dir=mounts, read_only=True) as path,
    ):
        yield path


@contextmanager
def temporary_view(snapshotter: Snapshotter, key: str) -> Iterator[list[Mount]]:
    """Make a View of a Committed snapshot for the body, and yield its mounts.

    Raises:
        NotFound: no such snapshot.
    """
    view = f"view-{secrets.token_hex(6)} {key}"
    # A daemon's collector would take it away during the body.
    found = snapshotter.view(view, key, labels={GC_ROOT: datetime.now(UTC).isoformat()})
    try:
        yield found
    finally:
        snapshotter.remove(view)
