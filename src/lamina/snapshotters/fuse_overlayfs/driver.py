"""Storage of the fuse-overlayfs snapshotter, in containerd's layout and with its mounts.

    ROOT/snapshots/ID/fs     upper directory while Active, lower directory once Committed
    ROOT/snapshots/ID/work   work directory of an Active snapshot

The program reads deletions as overlayfs writes them, and writes them so where it may; besides it
leaves files `.wh..wh..opq` and attributes `user.fuseoverlayfs.*`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from lamina.core.driver import Ability, Snapshot
from lamina.core.idmap import parse_idmap
from lamina.core.labels import GID_MAPPING, UID_MAPPING
from lamina.core.mount import FUSE_OVERLAYFS, Mount, escape_option
from lamina.core.snapshot import Kind
from lamina.errors import FailedPrecondition
from lamina.snapshotters.directories import make_directory
from lamina.snapshotters.mappings import mapped_root
from lamina.snapshotters.stacked import StackedDriver, bind


class FuseOverlayDriver(StackedDriver):
    """The fuse-overlayfs driver.

    Args:
        root: the snapshotter's directory; made when absent.

    Raises:
        FailedPrecondition: the program cannot be told of directories below that one.
    """

    abilities: frozenset[Ability] = frozenset({Ability.REMAP_IDS})

    def __init__(self, root: Path) -> None:
        if ":" in os.fspath(root.absolute()):
            raise FailedPrecondition(
                "use for fuse-overlayfs", root.absolute(),
                hint="a colon separates layers there, whatever precedes it; choose another path",
            )  # fmt: skip
        super().__init__(root)

    def create(self, snapshot: Snapshot) -> None:
        """Make the directories; `fs` belongs to whom the parent's does.

        Without parents it is bind-mounted, which maps no ids: then the mapped root has it.
        """
        owner = mapped_root(snapshot.labels)
        directory = self.make(snapshot, None if snapshot.parents else owner)
        if snapshot.kind == Kind.ACTIVE:
            make_directory(directory / "work", 0o711)

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        """Return one bind mount, or one of fuse-overlayfs where something has to be merged."""
        mapping = _mapping(snapshot.labels)
        if snapshot.kind == Kind.ACTIVE and snapshot.parents:
            directory = self.of(snapshot.id)
            return [
                _merged(
                    f"workdir={escape_option(directory / 'work')}",
                    f"upperdir={escape_option(directory / 'fs')}",
                    self._lowerdir(snapshot.parents),
                    *mapping,
                )
            ]
        if len(snapshot.parents) > 1 or (snapshot.parents and mapping):
            return [_merged(self._lowerdir(snapshot.parents), *mapping)]
        access = "rw" if snapshot.kind == Kind.ACTIVE else "ro"
        return [bind(self.fs((*snapshot.parents, snapshot.id)[0]), access)]

    def _lowerdir(self, parents: tuple[int, ...]) -> str:
        directory = escape_option(self.path)
        return "lowerdir=" + ":".join(f"{directory}/{id}/fs" for id in parents)


def _mapping(labels: Mapping[str, str]) -> tuple[str, ...]:
    """Return the program's options for the mapping labels, where a colon separates everything."""
    options = (("uidmapping", labels.get(UID_MAPPING)), ("gidmapping", labels.get(GID_MAPPING)))
    return tuple(
        f"{name}=" + ":".join(f"{r.container}:{r.host}:{r.size}" for r in parse_idmap(text))
        for name, text in options
        if text is not None
    )


def _merged(*options: str) -> Mount:
    return Mount(FUSE_OVERLAYFS, "overlay", options=options)
