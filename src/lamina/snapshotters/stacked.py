"""Snapshots that are stacked directories: what overlayfs, fuse-overlayfs and aufs have in common.

    ROOT/snapshots/ID/fs   what it changes: writable while Active, a lower one once Committed

Whoever mounts them merges the directories of a snapshot and all of its parents. A View has a
directory as well, whose `fs` only a View without parent is mounted from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.core.driver import Snapshot
from lamina.core.mount import Mount
from lamina.core.snapshot import Usage
from lamina.layer.usage import disk_usage
from lamina.snapshotters.directories import DirectoryDriver, make_directory
from lamina.snapshotters.forking import ForksUpper

if TYPE_CHECKING:
    from lamina.core.problem import Problem

Owner = tuple[int, int]
"""Ids of a user and a group."""


class StackedDriver(ForksUpper, DirectoryDriver):
    """The part of a driver that is the same for all that stack directories.

    Args:
        root: the snapshotter's own directory; made (0700) when absent.
    """

    def fs(self, id: int) -> Path:
        """Return the directory with that snapshot's own files, which may not exist."""
        return self.of(id) / "fs"

    def lower(self, id: int) -> Path:
        """Return what is below the snapshots that stand on this one."""
        return self.fs(id)

    def make(self, snapshot: Snapshot, owner: Owner | None) -> Path:
        """Make the snapshot's directory with `fs` in it, and return it.

        `fs` is the root directory that a mount shows, so it belongs to whom the parent's does where
        no owner is given.
        """
        directory = self.of(snapshot.id)
        fs = directory / "fs"
        make_directory(directory, 0o700)
        make_directory(fs, 0o755)
        if owner is None and snapshot.parents:
            parent = self.lower(snapshot.parents[0]).stat()
            owner = (parent.st_uid, parent.st_gid)
        if owner is not None:
            os.chown(fs, *owner, follow_symlinks=False)
        return directory

    def seal(self, snapshot: Snapshot) -> Usage:
        """Measure; the snapshot's directory becomes a lower one as it is."""
        return self.usage(snapshot)

    def usage(self, snapshot: Snapshot) -> Usage:
        """Measure what the snapshot changes."""
        return disk_usage(self.fs(snapshot.id))

    def faults(self, exists: Callable[[int], bool]) -> Iterator[Problem]:
        """Yield the snapshots that have a directory without `fs`: they cannot be mounted."""
        from lamina.core.problem import Problem

        for id in self._without_fs(self.ids()):
            # Looked for again: it may have been in the making.
            if exists(id) and self._without_fs([id]):
                fix = f"put it back; if that cannot be, remove {self.of(id)} and check again"
                yield Problem(str(id), f"{self.fs(id)} is gone, or no directory", fix)

    def _without_fs(self, ids: Iterable[int]) -> list[int]:
        def is_directory(path: Path) -> bool:
            return path.is_dir() and not path.is_symlink()

        return [id for id in ids if is_directory(self.of(id)) and not is_directory(self.fs(id))]


def bind(source: Path, *options: str) -> Mount:
    """Return a bind mount of a whole tree."""
    return Mount("bind", str(source), options=(*options, "rbind"))
