"""Storage of the overlayfs snapshotter, in containerd's layout and with its mounts.

    ROOT/snapshots/ID/fs      upper directory while Active, lower directory once Committed
    ROOT/snapshots/ID/work    work directory of an Active snapshot
    ROOT/snapshots/rm-ID      what is being removed

A View has a directory as well, whose `fs` only a View without parent is mounted from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.core.driver import Ability, Snapshot
from lamina.core.labels import OVERLAY_UPPERDIR, OVERLAY_VOLATILE
from lamina.core.mount import Mount, escape_option
from lamina.core.snapshot import Kind, Usage
from lamina.layer.usage import disk_usage
from lamina.meta.boot import boot_id
from lamina.snapshotters.directories import DirectoryDriver, make_directory
from lamina.snapshotters.mappings import mapped_root, mapping_options
from lamina.snapshotters.overlayfs.volatile import check_volatile, prepare_volatile

if TYPE_CHECKING:
    from lamina.core.problem import Problem


class OverlayDriver(DirectoryDriver):
    """The overlayfs driver.

    Args:
        root: the snapshotter's directory; made when absent.
        abilities: what kernel and configuration allow.
        mount_options: for every overlay mount, after the directories; never for bind mounts.
        upperdir_label: show the label OVERLAY_UPPERDIR.
        boot: id of the running boot, if not the kernel's.
    """

    def __init__(
        self,
        root: Path,
        *,
        abilities: frozenset[Ability] = frozenset({Ability.REBASE}),
        mount_options: tuple[str, ...] = (),
        upperdir_label: bool = False,
        boot: str = "",
    ) -> None:
        super().__init__(root)
        self._abilities = abilities
        self._mount_options = mount_options
        self._upperdir_label = upperdir_label
        self._boot = boot or boot_id()

    @property
    def abilities(self) -> frozenset[Ability]:
        """What kernel and configuration allow."""
        return self._abilities

    def create(self, snapshot: Snapshot) -> None:
        """Make the directories; `fs` belongs to the mapped root, or to whom the parent's does."""
        owner = mapped_root(snapshot.labels)
        if not snapshot.parents and Ability.REMAP_IDS in self._abilities:
            owner = None  # the id-mapped bind mount of `fs` makes the mapped root of id 0
        directory = self.of(snapshot.id)
        fs = directory / "fs"
        make_directory(directory, 0o700)
        make_directory(fs, 0o755)
        if snapshot.kind == Kind.ACTIVE:
            make_directory(directory / "work", 0o711)
        if owner is None and snapshot.parents:
            parent = self._fs(snapshot.parents[0]).stat()
            owner = (parent.st_uid, parent.st_gid)
        if owner is not None:
            os.chown(fs, *owner, follow_symlinks=False)

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        """Return one bind mount, or one overlay where directories have to be stacked."""
        mapping: tuple[str, ...] = ()
        if Ability.REMAP_IDS in self._abilities:
            mapping = mapping_options(snapshot.labels)
        if snapshot.kind == Kind.ACTIVE:
            if not snapshot.parents:
                return [_bind(self._fs(snapshot.id), (*mapping, "rw", "rbind"))]
            return [self._writable(snapshot, mapping)]
        if len(snapshot.parents) < 2:
            source = self._fs((*snapshot.parents, snapshot.id)[0])
            return [_bind(source, (*mapping, "ro", "rbind"))]
        return [_overlay((*mapping, self._lowerdir(snapshot.parents), *self._mount_options))]

    def _writable(self, snapshot: Snapshot, mapping: tuple[str, ...]) -> Mount:
        directory = self.of(snapshot.id)
        options = (
            *mapping,
            f"workdir={escape_option(directory / 'work')}",
            f"upperdir={escape_option(directory / 'fs')}",
            self._lowerdir(snapshot.parents),
            *self._mount_options,
        )
        if snapshot.labels.get(OVERLAY_VOLATILE) != "true":
            return _overlay(options)
        prepare_volatile(directory, self._boot)
        return _overlay((*options, "volatile"))

    def _lowerdir(self, parents: tuple[int, ...]) -> str:
        # Made of strings, because up to 500 layers as Paths would take longer than all the rest.
        directory = escape_option(self.path)
        return "lowerdir=" + ":".join(f"{directory}/{id}/fs" for id in parents)

    def seal(self, snapshot: Snapshot) -> Usage:
        """Measure; the upper directory becomes a lower one as it is."""
        check_volatile(self.of(snapshot.id), self._boot)
        return self.usage(snapshot)

    def usage(self, snapshot: Snapshot) -> Usage:
        """Measure the upper directory."""
        return disk_usage(self._fs(snapshot.id))

    def info_labels(self, id: int) -> Mapping[str, str]:
        """Return the upper directory, if the configuration wants it shown."""
        if not self._upperdir_label:
            return super().info_labels(id)
        return {OVERLAY_UPPERDIR: str(self._fs(id))}

    def faults(self, exists: Callable[[int], bool]) -> Iterator[Problem]:
        """Yield the snapshots that have a directory without `fs`: they cannot be mounted."""
        from lamina.core.problem import Problem

        for id in self._without_fs(self.ids()):
            # Looked for again: it may have been in the making.
            if exists(id) and self._without_fs([id]):
                fix = f"put it back; if that cannot be, remove {self.of(id)} and check again"
                yield Problem(str(id), f"{self._fs(id)} is gone, or no directory", fix)

    def _without_fs(self, ids: Iterable[int]) -> list[int]:
        def is_directory(path: Path) -> bool:
            return path.is_dir() and not path.is_symlink()

        return [id for id in ids if is_directory(self.of(id)) and not is_directory(self._fs(id))]

    def _fs(self, id: int) -> Path:
        return self.of(id) / "fs"


def _bind(source: Path, options: tuple[str, ...]) -> Mount:
    return Mount("bind", str(source), options=options)


def _overlay(options: tuple[str, ...]) -> Mount:
    return Mount("overlay", "overlay", options=options)
