"""Storage of the aufs snapshotter, in containerd's layout and with its mounts.

    ROOT/snapshots/ID/fs   writable branch while Active, read-only branch once Committed

Deletions are there in aufs's own notation: a file `.wh.NAME`, and `.wh..wh..opq` in a directory
that hides the ones below it. Nothing but aufs writes it, so layers are extracted through a mount;
only the base layer, which deletes nothing, is extracted into its `fs`.
"""

from __future__ import annotations

import os
from pathlib import Path

from lamina.core.driver import Ability, Snapshot
from lamina.core.mount import Mount
from lamina.core.snapshot import Kind
from lamina.errors import FailedPrecondition
from lamina.snapshotters.aufs.support import XINO
from lamina.snapshotters.stacked import StackedDriver, bind

_SEPARATORS = ":,="


class AufsDriver(StackedDriver):
    """The aufs driver.

    Args:
        root: the snapshotter's directory; made when absent.
        dirperm1: whether the kernel knows that option: only the topmost branch's mode of a
            directory counts.

    Raises:
        FailedPrecondition: aufs cannot be told of directories below that one.
    """

    abilities: frozenset[Ability] = frozenset()

    def __init__(self, root: Path, *, dirperm1: bool) -> None:
        if any(separator in os.fspath(root.absolute()) for separator in _SEPARATORS):
            raise FailedPrecondition(
                "use for aufs", root.absolute(),
                hint=f"it takes none of {' '.join(_SEPARATORS)} in a path; choose another",
            )  # fmt: skip
        super().__init__(root)
        self._options = ("dio", f"xino={XINO}", *(("dirperm1",) if dirperm1 else ()))

    def create(self, snapshot: Snapshot) -> None:
        """Make the directory; it belongs to whom the parent's does."""
        self.make(snapshot, None)

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        """Return one bind mount, or one aufs where directories have to be stacked."""
        writable = snapshot.kind == Kind.ACTIVE
        if len(snapshot.parents) < (1 if writable else 2):
            source = self.fs((*snapshot.parents, snapshot.id)[0])
            return [bind(source, "rw" if writable else "ro")]
        branches = [f"{self.fs(id)}=ro+wh" for id in snapshot.parents]
        if writable:
            branches.insert(0, f"{self.fs(snapshot.id)}=rw")
        return [Mount("aufs", "none", options=(*self._options, f"br:{':'.join(branches)}"))]
