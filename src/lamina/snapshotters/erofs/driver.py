"""Storage of the erofs snapshotter.

    ROOT/snapshots/ID/fs            upper directory while Active; once Committed, where the layer's
                                    image is mounted when it is needed
    ROOT/snapshots/ID/work          work directory of an Active snapshot
    ROOT/snapshots/ID/layer.erofs   image of a Committed snapshot, or of a layer to be committed
    ROOT/snapshots/ID/.erofslayer   marks a snapshot that is or was Active, as containerd does

The upper directory stays until the commit is on disk: a commit that comes to nothing leaves the
snapshot Active, with all that is in it. The image of a layer that was not extracted is told from
what such a commit leaves by its UUID, which is not zero; nothing is in the upper directory then.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.core.disk_usage import disk_bytes
from lamina.core.driver import Ability, Snapshot
from lamina.core.mount import Mount
from lamina.core.snapshot import Kind, Usage
from lamina.errors import DataLoss, FailedPrecondition, LaminaError
from lamina.snapshotters.erofs.immutable import protect
from lamina.snapshotters.erofs.verity import require_sealed, seal
from lamina.snapshotters.lower_mounts import is_mounted, locked, mount_once, unmount_all
from lamina.snapshotters.overlay_stack import OverlayStackDriver
from lamina.snapshotters.tree import remove_tree, unprotect

if TYPE_CHECKING:
    from lamina.core.problem import Problem

log = logging.getLogger(__name__)

IMAGE = "layer.erofs"
MARK = ".erofslayer"
_NEW = "layer.erofs.new"
_GONE = "it is gone; `lamina fsck --repair` tells how to have the layer again"


class ErofsDriver(OverlayStackDriver):
    """The erofs driver.

    Args:
        root: the snapshotter's directory; made when absent.
        abilities: what kernel and configuration allow.
        mount_options: for every overlay mount.
        immutable: protect images by the inode flag, which the filesystem must have.
        verity: seal images by fs-verity, which the filesystem must have, and mount no others.
        file_backed: mount files as they are where the kernel can; else through loop devices only.
    """

    mounts_at_once = False
    mounts_layers = True

    def __init__(
        self,
        root: Path,
        *,
        abilities: frozenset[Ability] = frozenset({Ability.REBASE}),
        mount_options: tuple[str, ...] = (),
        immutable: bool = False,
        verity: bool = False,
        file_backed: bool = True,
    ) -> None:
        super().__init__(root, abilities=abilities, mount_options=mount_options)
        self._immutable = immutable
        self._verity = verity
        self._file_backed = file_backed

    def image(self, id: int) -> Path:
        """Return the image of a Committed snapshot's layer."""
        return self.of(id) / IMAGE

    def create(self, snapshot: Snapshot) -> None:
        """Make the directories; `fs` belongs to the mapped root, or to whom the parent's does."""
        self._mount_layers(snapshot.parents)
        super().create(snapshot)
        if snapshot.kind == Kind.ACTIVE:
            (self.of(snapshot.id) / MARK).touch(0o644)

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        """Return one bind mount or one overlay, after mounting the layers that it stands on.

        Raises:
            DataLoss: the image of a layer is gone, or damaged.
            FailedPrecondition: it is not sealed by fs-verity, where it has to be.
        """
        self._mount_layers(snapshot.parents)
        return super().mounts(snapshot)

    def layer_image(self, snapshot: Snapshot) -> Path | None:
        """Return where the image of a layer goes, which is not extracted then."""
        image = self.image(snapshot.id)
        return None if image.exists() or any(self.fs(snapshot.id).iterdir()) else image

    def seal(self, snapshot: Snapshot) -> Usage:
        """Make the image of what the snapshot changes, unless it is there; return what it takes.

        Raises:
            FailedPrecondition: a layer's image is there, and something was written besides.
            FormatError: that image is not whole.
        """
        from lamina.snapshotters.erofs.image import is_of_archive, write_layer  # for commits only

        fs, new, image = self.fs(snapshot.id), self.of(snapshot.id) / _NEW, self.image(snapshot.id)
        if image.exists() and is_of_archive(image):
            if any(fs.iterdir()):
                hint = "its layer came as an image: prepare another on top of it"
                raise FailedPrecondition("commit what was written to", fs, hint=hint)
        else:
            for path in (new, image):  # of a commit that came to nothing
                self._remove_image(path)
            write_layer(fs, new)
            new.rename(image)
        if self._verity:
            seal(image)  # before it is immutable, which could not be sealed
        if self._immutable:
            protect(image)
        return Usage(1, disk_bytes(image.stat()))

    def settle(self, ids: Iterable[int]) -> None:
        """Remove the upper directory's content, which the image has, and the work directory."""
        for id in ids:
            try:
                self._settle(id)
            except FileNotFoundError:
                continue  # removed meanwhile
            except (LaminaError, OSError) as error:
                log.warning("keeps what its image has: %s", error, extra={"snapshot": id})

    def destroy(self, id: int) -> None:
        """Unmount the layer and remove the directory."""
        unmount_all(self.fs(id))
        for path in (self.image(id), self.of(id) / _NEW):
            self._remove_image(path)
        super().destroy(id)

    def faults(self, exists: Callable[[int], bool]) -> Iterator[Problem]:
        """Yield also the layers without an image, or with one that does not begin as it should."""
        from lamina.core.problem import Problem

        yield from super().faults(exists)
        yield from self._damaged(exists, deep=False)
        for id in self.ids():
            # Looked for again: it may have been in the making.
            if self._lacks_image(id) and exists(id) and self._lacks_image(id):
                put_back = f"put it back; if that cannot be, umount {self.fs(id)} if it is mounted"
                fix = f"{put_back}, remove {self.of(id)} and check again"
                yield Problem(str(id), f"{self.image(id)} is gone", fix)

    def damage(self, exists: Callable[[int], bool]) -> Iterator[Problem]:
        """Yield the layers whose images are damaged somewhere else."""
        return self._damaged(exists, deep=True)

    def _damaged(self, exists: Callable[[int], bool], *, deep: bool) -> Iterator[Problem]:
        from lamina.snapshotters.erofs_check import problem_of

        for id in self.ids():
            # Of what is not settled, the image may be in the making.
            if self._is_settled(id) and exists(id):
                problem = problem_of(id, self.image(id), deep=deep)
                if problem is not None:
                    yield problem

    def _lacks_image(self, id: int) -> bool:
        # In this order: the image is made before the work directory goes.
        return self._is_settled(id) and not self.image(id).exists()

    def _is_settled(self, id: int) -> bool:
        return (self.of(id) / MARK).exists() and not (self.of(id) / "work").exists()

    def _mount_layers(self, ids: Iterable[int]) -> None:
        for id in ids:
            try:
                mount_once(self.fs(id), functools.partial(self._mount, id))
            except FileNotFoundError as error:
                raise DataLoss("mount layer", self.fs(id), hint=_GONE) from error

    def _settle(self, id: int) -> None:
        fs = self.fs(id)
        if not is_mounted(fs):
            with locked(fs):
                if not is_mounted(fs) and self.image(id).exists():
                    self._empty(id)

    def _mount(self, id: int) -> None:
        from lamina.snapshotters.erofs_mount import mount_image

        image = self.image(id)
        if not image.exists():
            raise DataLoss("mount layer", image, hint=_GONE)
        if self._verity:
            require_sealed(image)
        self._empty(id)
        mount_image(image, self.fs(id), file_backed=self._file_backed)

    def _empty(self, id: int) -> None:
        """Remove what was written to the snapshot while it was Active; the directory stays."""
        for path in self.fs(id).iterdir():
            remove_tree(path)
        remove_tree(self.of(id) / "work")

    def _remove_image(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except PermissionError:  # it may be immutable
            fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                unprotect(fd, path.name)
            finally:
                os.close(fd)
            path.unlink()
