"""One pull, import or unpack: what it holds, and how it ends.

The whole operation is under one lease. Content and snapshots are put under it before they are
looked for; the record of the image, which holds them from then on, is made in the transaction that
drops the lease. An operation that fails, or is killed, leaves its lease behind without owner: its
blobs, finished or not, and the layers that it committed stay for a day, so that the next try goes
on where this one stopped; half made snapshots are removed at once, or by the next pull.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from lamina.errors import LaminaError
from lamina.images.catalogue import Image
from lamina.images.extraction import Destination
from lamina.images.fetch import DEFAULT_DOWNLOADS, Fetcher
from lamina.images.manifest import CONFIG_TYPES, INDEX_TYPES, MANIFEST_TYPES, Descriptor, Platform
from lamina.images.platform import default_platform
from lamina.images.progress import Progress, Silent, StageClock
from lamina.images.reference import Reference
from lamina.images.registry.cancel import Cancel
from lamina.images.registry.client import Registry
from lamina.images.store import ImageStore
from lamina.images.tree import PlatformImage, descendants, select
from lamina.images.unpack import Unpacker
from lamina.layer.limits import LayerLimits
from lamina.layer.process import LayerWorkers

log = logging.getLogger(__name__)

IMAGE_LABEL = "lamina.io/operation.image"
"""On a lease: the name of the image that the operation is about."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to pull, import or unpack.

    Attributes:
        platforms: which images to unpack; none means the machine's own platform.
        all_platforms: fetch the content for all platforms, and unpack those of `platforms`.
        all_metadata: fetch manifests and configurations for all platforms, layers for `platforms`.
        labels: put on the image record.
        downloads: layers to download at the same time.
        workers: layers to apply at the same time; 0 means one for each processor.
        limits: bounds of each layer.
    """

    platforms: tuple[Platform, ...] = ()
    all_platforms: bool = False
    all_metadata: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    downloads: int = DEFAULT_DOWNLOADS
    workers: int = 0
    limits: LayerLimits = field(default_factory=LayerLimits)


class Operation:
    """The state of one operation; made by `operation`.

    Attributes:
        lease: id of the lease that holds what the operation needs.
    """

    def __init__(
        self,
        store: ImageStore,
        lease: str,
        fetcher: Fetcher,
        options: Options,
        progress: Progress,
        clock: StageClock,
        cancel: Cancel,
    ) -> None:
        self.lease = lease
        self.fetcher = fetcher
        self.clock = clock
        self.cancel = cancel
        self._store = store
        self._options = options
        self._progress = progress

    def bring(
        self, target: Descriptor, destination: Destination | None
    ) -> tuple[PlatformImage, ...]:
        """Fetch what the options ask for below `target`, and unpack it unless there is nowhere to.

        Returns:
            The images for the platforms asked for, in their order.
        """
        platforms = self._options.platforms or (default_platform(),)
        found = {
            image.descriptor.digest: image
            for image in (select(target, platform, self.fetcher.read) for platform in platforms)
        }
        images = tuple(found.values())
        self.fetcher.hold([d for i in images for d in (i.manifest.config, *i.manifest.layers)])
        if destination is None:
            self._fetch([layer for image in images for layer in image.manifest.layers])
        else:
            self._unpack(images, destination)
        if self._options.all_platforms or self._options.all_metadata:
            self._fetch_others(target)
        return images

    def record(self, targets: Mapping[str, Descriptor]) -> tuple[list[Image], bool]:
        """Make the image records and drop the lease, all at once.

        Returns:
            The records, and whether something may have become garbage by it: what an older record
            pointed at, or the remains of a dead operation for one of the names.
        """
        catalogue, leases = self._store.catalogue, self._store.leases
        images: list[Image] = []
        garbage = False
        with self._store.database.write() as connection:
            for name, target in targets.items():
                old = catalogue.find(name)
                garbage |= old is not None and old.target.digest != target.digest
                garbage |= leases.drop_abandoned(connection, IMAGE_LABEL, name) > 0
                image = catalogue.put_in(connection, name, target, self._options.labels)
                images.append(image)
            leases.drop(connection, self.lease)
        return images, garbage

    def _unpack(self, images: Sequence[PlatformImage], destination: Destination) -> None:
        processors = len(os.sched_getaffinity(0))
        count = self._options.workers or processors
        # The workers keep this process's token alive: what a dead process's worker still writes
        # to is not taken for garbage.
        with LayerWorkers(count, held=[self._store.owners.fileno()]) as workers:
            unpacker = Unpacker(
                self._store,
                destination,
                self.lease,
                fetcher=self.fetcher,
                workers=workers,
                limits=self._options.limits,
                progress=self._progress,
                clock=self.clock,
                cancel=self.cancel,
                origin=self.fetcher.origin,
            )
            for image in images:
                unpacker.unpack(image)

    def _fetch_others(self, target: Descriptor) -> None:
        blobs: list[Descriptor] = []
        for descriptor in descendants(target, self.fetcher.read):
            if descriptor.media_type in CONFIG_TYPES:
                self.fetcher.read(descriptor)
            elif descriptor.media_type not in INDEX_TYPES | MANIFEST_TYPES:
                blobs.append(descriptor)
        if self._options.all_platforms:
            self._fetch(blobs)

    def _fetch(self, descriptors: Sequence[Descriptor]) -> None:
        self.fetcher.hold(descriptors)
        self.fetcher.require_space(descriptors)
        for download in self.fetcher.layers(descriptors):
            download.wait()


@contextmanager
def operation(
    store: ImageStore,
    name: str,
    *,
    source: tuple[Registry, Reference] | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    lease: str = "",
) -> Iterator[Operation]:
    """Run the body as one operation.

    Args:
        store: where everything goes.
        name: the image it is about.
        source: where to get what is missing; None for local content only.
        options: how.
        progress: told what happens.
        cancel: stops it from another thread.
        lease: id of a lease of the caller's that is to hold everything; "" takes one for the body.
    """
    options = options or Options()
    progress = progress or Silent()
    cancel = cancel or Cancel()
    clock = StageClock()
    held = lease or store.leases.create(owned=True, labels={IMAGE_LABEL: name}).id
    try:
        with Fetcher(
            store,
            held,
            source=source,
            downloads=options.downloads,
            progress=progress,
            clock=clock,
            cancel=cancel,
        ) as fetcher:
            yield Operation(store, held, fetcher, options, progress, clock, cancel)
    except BaseException:
        if not lease:
            _give_up(store, held)
        raise
    if not lease:
        with store.database.write() as connection:
            store.leases.drop(connection, held)


def _give_up(store: ImageStore, lease: str) -> None:
    try:
        store.leases.release(lease)
    except LaminaError as error:  # the failure of the operation is the one to report
        log.warning("cannot give a lease up: %s", error, extra={"lease": lease})
