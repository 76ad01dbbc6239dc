"""Storage of the native snapshotter: every snapshot is a directory with all of its content.

    ROOT/snapshots/ID      the root filesystem itself; empty for a View that has a parent
    ROOT/snapshots/rm-ID   what is being removed

A snapshot's usage counts the whole directory, what was copied from the parent included, as in
containerd: that is what its removal frees, unless the copy shares blocks (reflink).
"""

from __future__ import annotations

from pathlib import Path

from lamina.core.driver import Ability, Snapshot
from lamina.core.mount import Mount
from lamina.core.snapshot import Kind, Usage
from lamina.layer.usage import disk_usage
from lamina.snapshotters.directories import DirectoryDriver, make_directory
from lamina.snapshotters.tree_copy import copy_tree


class NativeDriver(DirectoryDriver):
    """The native driver.

    Args:
        root: the snapshotter's directory; made when absent.
    """

    abilities: frozenset[Ability] = frozenset()
    forks_atomically = False

    def create(self, snapshot: Snapshot) -> None:
        """Copy the parent; a View needs none, since it is mounted from the parent itself."""
        directory = self.of(snapshot.id)
        make_directory(directory, 0o755)
        if snapshot.parents and snapshot.kind == Kind.ACTIVE:
            copy_tree(self.of(snapshot.parents[0]), directory)

    def fork(self, source: Snapshot, target: Snapshot) -> None:
        """Copy the source as it is, instead of its parent."""
        from lamina.snapshotters.live_copy import copy_live_tree  # to run a container, none is

        directory = self.of(target.id)
        make_directory(directory, 0o755)
        copy_live_tree(self.of(source.id), directory)

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        """Return a bind mount of the directory, or for a View of its parent's."""
        if snapshot.kind == Kind.ACTIVE:
            return [_bind(self.of(snapshot.id), "rw")]
        return [_bind(self.of((*snapshot.parents, snapshot.id)[0]), "ro")]

    def seal(self, snapshot: Snapshot) -> Usage:
        """Measure; the directory stays what it is."""
        return self.usage(snapshot)

    def usage(self, snapshot: Snapshot) -> Usage:
        """Measure the whole directory."""
        return disk_usage(self.of(snapshot.id))


def _bind(source: Path, access: str) -> Mount:
    return Mount("bind", str(source), options=("rbind", access))
