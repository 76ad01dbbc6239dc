"""Storage of the nydus snapshotter.

    ROOT/snapshots/ID/fs              as overlayfs has it; of a blob's layer, empty
    ROOT/snapshots/ID/work            work directory of an Active snapshot
    ROOT/snapshots/ID/blob.json       of a blob's layer: where the blob is
    ROOT/snapshots/ID/bootstrap.json  of a layer with a bootstrap: which image it is of
    ROOT/snapshots/ID/layer.erofs     of such a layer: the image that is mounted
    ROOT/snapshots/ID/devices.json    of such a layer: the caches that are its devices
    ROOT/snapshots/ID/mnt             of such a layer: where all of the image is mounted
    ROOT/blobs                        the caches: see `blobs`
    ROOT/lazy                         the worker that fetches what is read

The layers of blobs are claimed, and nothing is fetched. The layer with the bootstrap is unpacked;
when it is committed, the image is laid out and mounted. It is the lowest lower directory of
whatever stands on it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from lamina.core.disk_usage import disk_bytes
from lamina.core.driver import Claimed, Refused, Snapshot
from lamina.core.labels import SNAPSHOT_REF
from lamina.core.problem import Problem
from lamina.core.snapshot import Usage
from lamina.errors import DataLoss, FailedPrecondition, InvalidArgument, LaminaError
from lamina.formats.rafs.annotations import BLOB, BOOTSTRAP
from lamina.snapshotters.directories import make_directory
from lamina.snapshotters.lazy_access import Access
from lamina.snapshotters.lazy_overlay import GATE_LABEL, LazyArguments, LazyOverlayDriver
from lamina.snapshotters.lower_mounts import is_mounted
from lamina.snapshotters.nydus.origin import (
    BLOB_NOTE,
    BOOTSTRAP_NOTE,
    PULL_HINT,
    Origin,
    origin_of,
    read_origin,
    require_servable,
)

if TYPE_CHECKING:
    from lamina.snapshotters.lazy_eviction import LazyLayer
    from lamina.snapshotters.nydus.blobs import Blobs
    from lamina.snapshotters.nydus.contents import Contents
    from lamina.snapshotters.nydus.registry import ImageRegistry

IMAGE = "layer.erofs"
_NEW_IMAGE = "layer.new"
_BOOTSTRAP = "layer.boot"
_POINT = "mnt"


class NydusDriver(LazyOverlayDriver):
    """The nydus driver.

    Args:
        root: the snapshotter's directory; made when absent.
        prefetches: fetch at once what a bootstrap wants to be fetched first.
        arguments: as for `LazyOverlayDriver`.
    """

    factory = "lamina.snapshotters.nydus.serving:open_blob"

    def __init__(
        self,
        root: Path,
        *,
        prefetches: bool = True,
        **arguments: Unpack[LazyArguments],
    ) -> None:
        super().__init__(root, **arguments)
        self._prefetches = prefetches

    @functools.cached_property
    def _blobs(self) -> Blobs:
        from lamina.snapshotters.nydus.blobs import Blobs  # lists of snapshotters need none

        return Blobs(self._root)

    # Where things are

    def image(self, id: int) -> Path:
        """Return the image that is mounted for a layer with a bootstrap."""
        return self.of(id) / IMAGE

    def lower_name(self, id: int) -> str:
        """Return `mnt` of a layer with a bootstrap: there all of its image is mounted."""
        return _POINT if self.is_lazy(id) else "fs"

    def point(self, id: int) -> Path:
        """Return where the image of a layer with a bootstrap is mounted."""
        return self.of(id) / _POINT

    def stack(self, parents: tuple[int, ...]) -> tuple[int, ...]:
        """Leave out what is below the topmost bootstrap, which has all of that."""
        for position, id in enumerate(parents):
            if self.is_lazy(id):
                return parents[: position + 1]
        return parents

    def standing(self, parents: tuple[int, ...]) -> list[int]:
        """Return the layer with the topmost bootstrap."""
        return [id for id in self.stack(parents)[-1:] if self.is_lazy(id)]

    def devices(self, id: int) -> tuple[Path | None, ...]:
        """Return the caches of an image's blobs."""
        from lamina.snapshotters.nydus.blobs import NONE, read_devices

        names = read_devices(self.of(id))
        return tuple(None if name == NONE else self._blobs.cache(name) for name in names)

    def empty_device(self) -> Path:
        """Return the device of blobs that no file has anything of."""
        return self._blobs.empty_device()

    def mounting(self) -> AbstractContextManager[None]:
        """Keep caches from being emptied or removed."""
        return self._blobs.locked()

    # What the engine asks for

    def create(self, snapshot: Snapshot) -> None:
        """Make the directories; see `LazyOverlayDriver`.

        Raises:
            FailedPrecondition: it would stand on blobs without bootstrap, which are no files.
            InvalidArgument, NotImplementedHere: it is for a layer that cannot be served.
        """
        require_servable(snapshot.labels)
        if SNAPSHOT_REF not in snapshot.labels:
            self._require_files(snapshot.parents)
        super().create(snapshot)

    def claim(self, snapshot: Snapshot) -> Claimed | Refused:
        """Take a blob for served; leave everything else, the bootstrap too, to be unpacked."""
        origin = origin_of(snapshot.labels)
        if BLOB in snapshot.labels:
            origin.write(self.of(snapshot.id) / BLOB_NOTE)
            return Claimed()
        if BOOTSTRAP in snapshot.labels:
            origin.write(self.of(snapshot.id) / BOOTSTRAP_NOTE)
            return Refused("it has the bootstrap, by which the blobs below it are served")
        return self._refuse(snapshot.id, "it is no layer of a Nydus image")

    def seal(self, snapshot: Snapshot) -> Usage:
        """Measure; of a layer with a bootstrap, lay out its image and mount it.

        Raises:
            LaminaError: that cannot be done; the message names what is not supported.
        """
        origin = read_origin(self.of(snapshot.id) / BOOTSTRAP_NOTE)
        usage = self.usage(snapshot)
        if origin is None:
            return usage
        self._undo(snapshot.id)  # what a process has left that was killed here
        try:
            self._make_lazy(snapshot, origin)
        except BaseException:
            self._undo(snapshot.id)
            raise
        size = disk_bytes(self.image(snapshot.id).stat())
        return Usage(usage.inodes + 1, usage.size + size)

    def let_go(self, id: int) -> None:
        """Remove the caches that no other layer has."""
        from lamina.snapshotters.nydus.blobs import DEVICES

        if (self.of(id) / DEVICES).exists():
            with self._blobs.locked():
                (self.of(id) / DEVICES).unlink()
                self._blobs.sweep(self._names(), self._worker.remove)

    def growth(self, id: int) -> int:
        """Return the bytes of disk that a layer's caches take; shared ones count once."""
        from lamina.lazy.emptying import allocated

        mine = set(self.caches(id))
        if not mine:
            return 0
        shared = {cache for other in self.ids() if other < id for cache in self.caches(other)}
        return sum(map(allocated, mine - shared))

    def info_labels(self, id: int) -> Mapping[str, str]:
        """Return why a layer is not lazy, or through which gate its image is read."""
        shown = super().info_labels(id)
        if not self.is_lazy(id):
            return shown
        from lamina.lazy.layer import read_layer

        try:
            gates = {read_layer(cache).gate for cache in self.caches(id)}
        except LaminaError:
            return shown  # `fsck` tells what is damaged
        return {**shown, GATE_LABEL: ",".join(sorted(gates))} if gates else shown

    def problem_of(self, id: int, *, deep: bool) -> Problem | None:
        """Look into what is mounted for a layer, and for its caches; None where all is sound."""
        from lamina.snapshotters.erofs_check import PULL_AGAIN
        from lamina.snapshotters.nydus.check import fault_of

        try:
            lost = [cache for cache in self.caches(id) if not cache.is_dir()]
        except DataLoss as error:
            return Problem(str(id), str(error), PULL_AGAIN)
        if lost:
            return Problem(str(id), f"the cache {lost[0]} is gone", PULL_AGAIN)
        fault = fault_of(self.image(id), deep=deep)
        if fault is None:  # it is an image of Lamina's own
            return super().problem_of(id, deep=deep)
        return (
            Problem(str(id), f"{self.image(id)} is damaged: {fault}", PULL_AGAIN) if fault else None
        )

    # What that is made of

    def _make_lazy(self, snapshot: Snapshot, origin: Origin) -> None:
        # Only those who commit a bootstrap need the formats.
        from lamina.snapshotters.nydus import contents
        from lamina.snapshotters.nydus.bootstrap_file import copy_bootstrap
        from lamina.snapshotters.nydus.registry import ImageRegistry

        id, directory = snapshot.id, self.of(snapshot.id)
        blobs = self._blobs_below(snapshot.parents)
        origin = _located(origin, blobs)
        access = self._access._replace(plain_http=origin.plain_http)
        bootstrap = directory / _BOOTSTRAP
        copy_bootstrap(self.fs(id), bootstrap)
        registry = ImageRegistry(access, origin, blobs)
        found = contents.read_contents(bootstrap, registry.open)
        self._make_caches(id, found, access, registry)
        if found.is_mountable:
            bootstrap.rename(directory / _NEW_IMAGE)
        else:
            contents.write_image_of(found, directory / _NEW_IMAGE)
            bootstrap.unlink()
        make_directory(self.point(id), 0o755)
        (directory / _NEW_IMAGE).rename(self.image(id))
        self._mark(id, found)
        self._mount_new(id)

    def _make_caches(
        self, id: int, found: Contents, access: Access, registry: ImageRegistry
    ) -> None:
        from lamina.snapshotters.nydus import blobs
        from lamina.snapshotters.nydus.contents import plans_of

        plans = plans_of(found, registry.description)
        registry.require(plan.source for plan in plans if plan is not None)
        with self._blobs.locked():
            try:
                names = [
                    blobs.NONE if plan is None else self._blobs.make(plan, access, self._gate)
                    for plan in plans
                ]
                blobs.write_devices(self.of(id), names)
            except BaseException:
                self._blobs.sweep(self._names(), self._worker.remove)
                raise

    def _mark(self, id: int, found: Contents) -> None:
        """Note what is fetched at once, and whether the rest is in the background."""
        from lamina.snapshotters.lazy_eviction import COMPLETES
        from lamina.snapshotters.nydus.prefetch import want_first, wanted_places

        wanted = wanted_places(found.bootstrap, found.layout) if self._prefetches else {}
        size = sum(device.size for device in found.layout.devices)
        completes = self._has_room(id, size) and self._completes
        for number, cache in enumerate(self.devices(id), 1):
            if cache is not None and wanted.get(number):
                want_first(cache, wanted[number])
            if cache is not None and completes:
                (cache / COMPLETES).touch()

    def _undo(self, id: int) -> None:
        """Make the storage what it was before `seal`."""
        self._undo_mount(id)
        for name in (IMAGE, _NEW_IMAGE, _BOOTSTRAP):
            (self.of(id) / name).unlink(missing_ok=True)
        if self.point(id).is_dir():
            self.point(id).rmdir()

    def _names(self) -> set[str]:
        """Return the caches that any layer has."""
        from lamina.snapshotters.nydus.blobs import read_devices

        return {name for id in self.ids() for name in read_devices(self.of(id))}

    def _evict(self, layer: LazyLayer) -> int | None:
        """Empty the caches of a layer that no other has that is used or mounted."""
        with self._blobs.locked():
            others = [other for other in self._lazy_layers() if other.id != layer.id]
            held = {cache for other in others if self._is_held(other) for cache in other.caches}
            free = tuple(cache for cache in layer.caches if cache not in held)
            return super()._evict(layer._replace(caches=free))

    def _is_held(self, layer: LazyLayer) -> bool:
        return self.is_used(layer.id) or is_mounted(layer.point) or layer.is_open()

    def _blobs_below(self, parents: tuple[int, ...]) -> list[Origin]:
        """Return where the blobs are on which a bootstrap stands.

        Raises:
            FailedPrecondition: there is a layer with files among them, which it does not have.
        """
        found = []
        for id in parents:
            if (self.of(id) / BOOTSTRAP_NOTE).exists():
                break  # it has all of its own image, and this one has that
            origin = read_origin(self.of(id) / BLOB_NOTE)
            if origin is not None:
                found.append(origin)
            elif any(self.fs(id).iterdir()):
                raise FailedPrecondition(
                    "serve a Nydus image: a layer below its bootstrap is no Nydus blob",
                    hint="convert the whole image",
                )
        return found

    def _require_files(self, parents: tuple[int, ...]) -> None:
        if parents and not self.standing(parents) and (self.of(parents[0]) / BLOB_NOTE).exists():
            raise FailedPrecondition(
                "use a layer that is a Nydus blob: it has no names",
                hint="use the topmost layer of its image",
            )


def _located(origin: Origin, blobs: Iterable[Origin]) -> Origin:
    """Return which image a bootstrap is of, as any of its image's layers may say."""
    for one in (origin, *blobs):
        if one.reference:
            return one
    raise InvalidArgument(
        "serve a Nydus image: the labels of its layers do not say which image it is",
        hint=PULL_HINT,
    )
