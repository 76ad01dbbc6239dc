"""A writable copy of an image's root file system, mounted for the length of a `with` block.

Its snapshot and its mount point, `ROOT/checkouts/KEY`, are named `SNAPSHOTTER@TOKEN-NUMBER` after
the process that has it (`lamina.meta.owners`): what a killed process leaves is known by its dead
token, and is unmounted and removed by the next checkout or cleanup of the store.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lamina.core.digest import Digest
from lamina.core.labels import OVERLAY_VOLATILE
from lamina.core.mount import Mount
from lamina.core.snapshot import Snapshotter
from lamina.errors import FailedPrecondition, LaminaError, NotFound
from lamina.formats.compression import Compression
from lamina.images.commit import commit_image
from lamina.images.extraction import Destination
from lamina.images.platform import default_platform
from lamina.images.reference import parse
from lamina.images.tree import PlatformImage
from lamina.layer.diff import Diff
from lamina.layer.snapshot_diff import write_snapshot_diff
from lamina.mount import mount_all, unmount_all, unmount_recursive

if TYPE_CHECKING:
    from lamina.images.catalogue import Image
    from lamina.store import Store

log = logging.getLogger(__name__)

DIRECTORY = "checkouts"
_numbers = itertools.count(1)


class Checkout:
    """One copy; made by `Store.checkout`.

    Attributes:
        key: of its snapshot.
        path: where it is mounted, until it is committed or discarded.
    """

    def __init__(self, store: Store, base: PlatformImage, snapshotter: str) -> None:
        self.key = f"{snapshotter}@{store.images.owners.token}-{next(_numbers)}"
        self.path = store.root / DIRECTORY / self.key
        self._store = store
        self._images = store.images
        self._collect = store.collect
        self._base = base
        self._destination = Destination(snapshotter, store.snapshotter(snapshotter))
        self._mounts: list[Mount] = []

    def diff(self, output: BinaryIO, *, compression: Compression = Compression.GZIP) -> Diff:
        """Write what was changed so far as an OCI layer; nothing may write to the tree meanwhile.

        Raises:
            FailedPrecondition: the checkout is over.
            Aborted: the tree was changed meanwhile.
        """
        self._require_mounted("diff")
        return write_snapshot_diff(
            self._destination.snapshotter,
            self.key,
            output.write,
            mounts=self._images.mounts,
            compression=compression,
        )

    def commit(self, ref: str, *, comment: str = "") -> Image:
        """Make an image of the tree: the one it was made from, and one layer more.

        The checkout is over then. The image can be checked out, run and exported like any other;
        one that has the name already is replaced, and what only that one named is collected.

        Args:
            ref: the new image's reference, full or short.
            comment: for the image's history.

        Raises:
            InvalidArgument: that is no reference.
            FailedPrecondition: the checkout is over already.
            Aborted: the tree was changed meanwhile.
            ResourceExhausted: there is no room for the layer.
        """
        self._require_mounted("commit")
        name = str(parse(ref))
        old = self._images.catalogue.find(name)
        try:
            image = commit_image(
                self._images,
                self._destination,
                self._base,
                self.key,
                name,
                comment=comment,
                release=self._unmount,
            )
        except LaminaError:
            self._collect_quietly()  # a layer may be written, and nothing names it
            raise
        if old is not None and old.target.digest != image.target.digest:
            self._collect_quietly()
        return image

    @contextmanager
    def fork(self) -> Iterator[Checkout]:
        """Give a copy of the tree as it is now for the length of a `with` block; both are used on.

        The copy is a checkout like this one: it may be committed, discarded and forked itself, and
        may outlast this one. `docs/fork.md` tells what it has of files being written meanwhile.

        Raises:
            FailedPrecondition: the checkout is over.
            NotImplementedHere: the snapshotter cannot fork.
            ResourceExhausted: there is no room.
        """
        self._require_mounted("fork")
        copy = Checkout(self._store, self._base, self._destination.name)
        copy.mount_with(lambda: self._destination.snapshotter.fork(self.key, copy.key))
        try:
            yield copy
        finally:
            copy.discard()

    def discard(self) -> None:
        """Unmount the tree and forget its changes; after a commit or a discard, do nothing."""
        self._unmount()
        _forget(self.path, self._destination.snapshotter)

    def mount(self, chain_id: Digest | None) -> None:
        """Make the snapshot and mount it; for `checkout` only."""
        # Volatile: unmounting would sync the whole disk otherwise. What is committed becomes
        # durable as every commit does, by a sync of the file system below.
        labels = {OVERLAY_VOLATILE: "true"}
        snapshotter = self._destination.snapshotter
        self.mount_with(lambda: snapshotter.prepare(self.key, chain_id or "", labels=labels))

    def mount_with(self, prepare: Callable[[], list[Mount]]) -> None:
        """Make the snapshot as told, and mount it; for `checkout` and `fork` only."""
        # The directory comes first and goes last: it is what `sweep` finds.
        self.path.mkdir(mode=0o700)
        try:
            mounts = prepare()
            mount_all(mounts, self.path)
        except BaseException:
            self.discard()
            raise
        self._mounts = mounts

    def _collect_quietly(self) -> None:
        """Free what nothing names any more; whatever fails there, the next collection repeats."""
        try:
            self._collect()
        except LaminaError as error:
            log.warning("left for the next collection: %s", error, extra={"key": self.key})

    def _unmount(self) -> None:
        if self._mounts:
            unmount_all(self._mounts, self.path)
            self._mounts = []

    def _require_mounted(self, what: str) -> None:
        if not self._mounts:
            raise FailedPrecondition(f"{what} a checkout that is over", self.key)


@contextmanager
def checkout(store: Store, ref: str, snapshotter: str) -> Iterator[Checkout]:
    """Give a checkout of an image for the length of the body; see `Store.checkout`."""
    sweep(store)
    (store.root / DIRECTORY).mkdir(mode=0o700, exist_ok=True)
    # From before the layers are looked for until the copy stands on them, and no longer: then the
    # copy itself keeps them.
    lease = store.images.leases.create(owned=True).id
    try:
        chain_id = store.unpack(ref, snapshotter, lease=lease)
        base = store.images.select(store.image(ref), default_platform())
        tree = Checkout(store, base, snapshotter)
        tree.mount(chain_id)
    finally:
        store.images.leases.delete(lease)
    try:
        yield tree
    finally:
        tree.discard()


def abandoned(store: Store) -> list[Path]:
    """Return the mount points of checkouts whose processes have died."""
    directory = store.root / DIRECTORY
    if not directory.is_dir():
        return []
    owners = store.images.owners
    owner_of = {
        path: path.name.rpartition("@")[2].partition("-")[0] for path in directory.iterdir()
    }
    return [path for path, owner in owner_of.items() if not owners.alive(owner)]


def sweep(store: Store) -> None:
    """Unmount and remove the checkouts of processes that have died."""
    for path in abandoned(store):
        snapshotter = path.name.rpartition("@")[0]
        try:
            unmount_recursive(path)
            _forget(path, store.snapshotter(snapshotter))
        except LaminaError as error:
            log.warning("cannot remove an abandoned checkout: %s", error, extra={"path": str(path)})


def _forget(path: Path, snapshotter: Snapshotter) -> None:
    try:
        snapshotter.remove(path.name)
    except NotFound:
        pass
    try:
        path.rmdir()
    except FileNotFoundError:
        pass
