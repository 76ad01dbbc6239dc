"""What would be lost with a place: what a snapshotter has recorded there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from lamina.errors import FailedPrecondition
from lamina.meta.owners import Owners
from lamina.meta.snapshots import SnapshotStore
from lamina.snapshotters.engine import DATABASE, OWNERS
from lamina.snapshotters.tree import remove_tree

CLOSING_SECONDS = 5.0
_POLL_SECONDS = 0.05
_SHOWN = 5


class RecordedSnapshots:
    """The snapshotter's directory, which need not be there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def exist(self) -> bool:
        """Tell whether the snapshotter has ever recorded anything there."""
        return (self.directory / DATABASE).exists()

    def keys(self) -> list[str]:
        """Return the keys of all snapshots."""
        if not self.exist():
            return []
        path = self.directory / DATABASE
        store = SnapshotStore(path, boot="", owners=Owners(self.directory / OWNERS))
        try:
            return sorted(store.ids().values())
        finally:
            store.close()

    def require_closed(self) -> None:
        """Make sure that no process works on it.

        What a command has left to the background is waited for: CLOSING_SECONDS.

        Raises:
            FailedPrecondition: one does.
        """
        deadline = time.monotonic() + CLOSING_SECONDS
        while self._is_open():
            if time.monotonic() > deadline:
                hint = "stop `lamina serve` and whatever else uses the snapshotter"
                raise FailedPrecondition("close the snapshotter in", self.directory, hint=hint)
            time.sleep(_POLL_SECONDS)

    def _is_open(self) -> bool:
        tokens = [path.name for path in (self.directory / OWNERS).glob("*")]
        return bool(tokens) and any(map(Owners(self.directory / OWNERS).alive, tokens))

    def forget(self) -> None:
        """Remove the directory: without the pool, everything in it leads nowhere."""
        if self.directory.exists():
            remove_tree(self.directory)


def counted(keys: Sequence[str]) -> str:
    """Say how many snapshots there are, and name the first of them."""
    noun = "snapshot" if len(keys) == 1 else "snapshots"
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{len(keys)} {noun} ({', '.join(keys[:_SHOWN])}{more})"
