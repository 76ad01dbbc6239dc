"""Directories that the kernel's overlay stacks, with containerd's mounts.

    ROOT/snapshots/ID/fs      upper directory while Active, lower directory once Committed
    ROOT/snapshots/ID/work    work directory of an Active snapshot

A View has a directory as well, whose `fs` only a View without parent is mounted from.
"""

from __future__ import annotations

from pathlib import Path

from lamina.core.driver import Ability, Snapshot
from lamina.core.mount import Mount, escape_option
from lamina.core.snapshot import Kind
from lamina.snapshotters.directories import make_directory
from lamina.snapshotters.mappings import mapped_root, mapping_options
from lamina.snapshotters.stacked import StackedDriver, bind


class OverlayStackDriver(StackedDriver):
    """The part of a driver that is the same for all whose snapshots are overlay mounts.

    Args:
        root: the snapshotter's directory; made when absent.
        abilities: what kernel and configuration allow.
        mount_options: for every overlay mount, after the directories; never for bind mounts.
    """

    def __init__(
        self,
        root: Path,
        *,
        abilities: frozenset[Ability] = frozenset({Ability.REBASE}),
        mount_options: tuple[str, ...] = (),
    ) -> None:
        super().__init__(root)
        self._abilities = abilities
        self._mount_options = mount_options

    @property
    def abilities(self) -> frozenset[Ability]:
        """What kernel and configuration allow."""
        return self._abilities

    def create(self, snapshot: Snapshot) -> None:
        """Make the directories; `fs` belongs to the mapped root, or to whom the parent's does."""
        owner = mapped_root(snapshot.labels)
        if not snapshot.parents and Ability.REMAP_IDS in self._abilities:
            owner = None  # the id-mapped bind mount of `fs` makes the mapped root of id 0
        directory = self.make(snapshot, owner)
        if snapshot.kind == Kind.ACTIVE:
            make_directory(directory / "work", 0o711)

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        """Return one bind mount, or one overlay where directories have to be stacked."""
        mapping: tuple[str, ...] = ()
        if Ability.REMAP_IDS in self._abilities:
            mapping = mapping_options(snapshot.labels)
        if snapshot.kind == Kind.ACTIVE:
            if not snapshot.parents:
                return [bind(self.fs(snapshot.id), *mapping, "rw")]
            return [self.writable(snapshot, mapping)]
        if not snapshot.parents:
            return [bind(self.fs(snapshot.id), *mapping, "ro")]
        if len(self.stack(snapshot.parents)) == 1:
            return [bind(self.lower(snapshot.parents[0]), *mapping, "ro")]
        return [overlay(*mapping, self._lowerdir(snapshot.parents), *self._mount_options)]

    def writable(self, snapshot: Snapshot, mapping: tuple[str, ...]) -> Mount:
        """Return the overlay of an Active snapshot with parents."""
        directory = self.of(snapshot.id)
        return overlay(
            *mapping,
            f"workdir={escape_option(directory / 'work')}",
            f"upperdir={escape_option(directory / 'fs')}",
            self._lowerdir(snapshot.parents),
            *self._mount_options,
        )

    def stack(self, parents: tuple[int, ...]) -> tuple[int, ...]:
        """Return those of a snapshot's parents that are lower directories: all of them."""
        return parents

    def lower_name(self, id: int) -> str:
        """Return the name, in a snapshot's directory, of its lower directory."""
        return "fs"

    def lower(self, id: int) -> Path:
        """Return the lower directory of a snapshot."""
        return self.of(id) / self.lower_name(id)

    def _lowerdir(self, parents: tuple[int, ...]) -> str:
        # Made of strings, because up to 500 layers as Paths would take longer than all the rest.
        directory = escape_option(self.path)
        names = (f"{directory}/{id}/{self.lower_name(id)}" for id in self.stack(parents))
        return "lowerdir=" + ":".join(names)


def overlay(*options: str) -> Mount:
    """Return an overlay mount."""
    return Mount("overlay", "overlay", options=options)
