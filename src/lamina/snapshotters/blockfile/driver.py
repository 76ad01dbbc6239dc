"""Storage of the blockfile snapshotter, in containerd's layout and with its mounts.

    ROOT/scratch        an empty filesystem
    ROOT/snapshots/ID   the image file of a snapshot; empty for a View that has a parent
    ROOT/no-reflink     the user has been told that files are copied in full here

An image file is a copy of its parent's, or of the scratch. A View is mounted from its parent's
file; so a snapshot is settled when it is sealed: it can be mounted read-only for ever after.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

from lamina.core.disk_usage import disk_bytes
from lamina.core.driver import Ability, Snapshot
from lamina.core.mount import Mount
from lamina.core.snapshot import EMPTY_LABELS, Kind, Usage
from lamina.errors import DataLoss
from lamina.linux.directory import entry_names
from lamina.linux.sync import syncfs
from lamina.snapshotters.blockfile.copy import clone_image, copy_image
from lamina.snapshotters.blockfile.image import make_image, resize_image, settle
from lamina.snapshotters.blockfile.scratch import Scratch
from lamina.snapshotters.blockfile.superblock import family_of, read_superblock
from lamina.snapshotters.mappings import mapped_root, mapping_options
from lamina.snapshotters.sizes import asked_size, is_extraction

log = logging.getLogger(__name__)

_STORED = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
_IDMAPPED = frozenset({"ext4", "xfs"})
"""Filesystems that can be mounted with id maps (>= 5.12)."""


class BlockfileDriver:
    """The blockfile driver.

    Args:
        root: the snapshotter's directory, which exists.
        scratch: where snapshots without parent come from.
        fs_type: the filesystem of files that do not say themselves what they have.
        mount_options: of every mount, before `ro` or `rw`; with `loop`.
    """

    forks_atomically = True

    def __init__(
        self,
        root: Path,
        scratch: Scratch,
        *,
        fs_type: str = "ext4",
        mount_options: tuple[str, ...] = ("loop",),
    ) -> None:
        self.path = root.absolute() / "snapshots"  # mounts are made in other directories
        self.path.mkdir(0o700, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._told = root / "no-reflink"
        self._scratch = scratch
        self._fs_type = fs_type
        self._mount_options = mount_options
        self._can_remap = fs_type in _IDMAPPED

    @property
    def abilities(self) -> frozenset[Ability]:
        """Id maps, where the filesystem can be mounted with them."""
        return frozenset({Ability.REMAP_IDS} if self._can_remap else ())

    def of(self, id: int) -> Path:
        """Return that snapshot's file, which may not exist."""
        return self.path / str(id)

    def create(self, snapshot: Snapshot) -> None:
        """Copy the parent's file, or the scratch; a View with a parent needs neither."""
        mapped_root(snapshot.labels)  # refuses labels that no mount could be made with
        file = self.of(snapshot.id)
        if snapshot.kind == Kind.VIEW and snapshot.parents:
            file.open("xb").close()
            return
        size = asked_size(snapshot)
        if size and not snapshot.parents and self._scratch.is_made:
            make_image(file, self._fs_type, size)
            return
        source = self.of(snapshot.parents[0]) if snapshot.parents else self._scratch.ready()
        fs_type = self._type_of(source)
        # An extraction is worth nothing after a power loss, and its commit is synced later.
        self._copy(source, file, durable=not is_extraction(snapshot))
        if size:
            resize_image(file, fs_type, size)

    def fork(self, source: Snapshot, target: Snapshot) -> None:
        """Copy the source's file with what is in memory of it, mounted or not.

        Raises:
            FailedPrecondition, ResourceExhausted: see `fork_image`.
        """
        from lamina.snapshotters.blockfile.fork import fork_image  # to run a container, none is

        file = self.of(source.id)
        if not fork_image(file, self.of(target.id), self._type_of(file)):
            self._tell_once()

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        """Return one mount through a loop device: of the snapshot's file, or its parent's."""
        is_view = snapshot.kind == Kind.VIEW
        owner = (*snapshot.parents, snapshot.id)[0] if is_view else snapshot.id
        file = self.of(owner)
        fs_type = self._type_of(file)
        mapping = mapping_options(snapshot.labels) if self._can_remap else ()
        added = self._added_options(fs_type, is_extraction=is_extraction(snapshot))
        options = (*mapping, *self._mount_options, *added, "ro" if is_view else "rw")
        return [Mount(fs_type, str(file), options=options)]

    def _added_options(self, fs_type: str, *, is_extraction: bool) -> tuple[str, ...]:
        given = {option.partition("=")[0] for option in self._mount_options}
        if fs_type == "xfs" and "nouuid" not in given:
            return ("nouuid",)  # copies have the UUID of their parent
        if is_extraction and fs_type in {"ext3", "ext4"} and not given & {"barrier", "nobarrier"}:
            # Each barrier is an fsync of the file, and nothing in it has to survive a power loss
            # before the sync that follows its commit.
            return ("nobarrier",)
        return ()

    def seal(self, snapshot: Snapshot) -> Usage:
        """Settle the filesystem, mounted or not, and measure."""
        file = self.of(snapshot.id)
        settle(file, self._type_of(file))
        return self.usage(snapshot)

    def usage(self, snapshot: Snapshot) -> Usage:
        """Return what the file has allocated beyond its parent's file."""
        allocated = self._allocated(snapshot.id)
        if snapshot.parents:
            allocated -= self._allocated(snapshot.parents[0])
        return Usage(1, max(allocated, 0))

    def destroy(self, id: int) -> None:
        """Remove the file; what is mounted from it stays usable, and its blocks with it."""
        try:
            # Through the descriptor: by now the path may lead to a root that was made anew.
            os.unlink(str(id), dir_fd=self._fd)
        except FileNotFoundError:
            pass

    def ids(self) -> list[int]:
        """List the files."""
        return [int(name) for name in entry_names(self._fd) if _STORED.fullmatch(name)]

    def sync(self) -> None:
        """Sync the filesystem that they are on."""
        syncfs(self._fd)

    def info_labels(self, id: int) -> Mapping[str, str]:
        """Return none."""
        return EMPTY_LABELS

    def close(self) -> None:
        """Close the descriptor; calling it again does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _copy(self, source: Path, target: Path, *, durable: bool) -> None:
        """Let the files share their blocks, which a power loss cannot tear apart, or copy them."""
        if clone_image(source, target):
            return
        self._tell_once()
        copy_image(source, target, durable=durable)

    def _tell_once(self) -> None:
        if self._told.exists():
            return
        self._told.touch()
        log.warning(
            "the disk cannot share blocks between files (reflink): blockfile copies its parent for "
            "each snapshot; xfs and btrfs can",
            extra={"path": str(self.path)},
        )

    def _type_of(self, file: Path) -> str:
        """Return the filesystem in a file, which the configuration may have changed since."""
        try:
            if not file.stat().st_size:
                hint = "a power loss left nothing of it: remove its snapshot, and make it again"
                raise DataLoss("use image file", file, hint=hint)
            family = read_superblock(file).family
        except FileNotFoundError as error:
            hint = "it is gone: remove its snapshot, and pull it again"
            raise DataLoss("use image file", file, hint=hint) from error
        if family in {"", family_of(self._fs_type)}:
            return self._fs_type
        return "ext4" if family == "ext" else family

    def _allocated(self, id: int) -> int:
        return disk_bytes(self.of(id).stat())
