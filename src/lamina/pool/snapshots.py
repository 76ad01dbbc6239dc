"""What the snapshotter has recorded on a pool, and would lose with it."""

from __future__ import annotations

from pathlib import Path

from lamina.errors import FailedPrecondition
from lamina.meta.owners import Owners
from lamina.meta.snapshots import SnapshotStore
from lamina.snapshotters.engine import DATABASE, OWNERS
from lamina.snapshotters.tree import remove_tree


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
