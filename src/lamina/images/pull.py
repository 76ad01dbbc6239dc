"""Pulling an image: resolve, fetch, unpack, record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lamina.images.catalogue import Image
from lamina.images.extraction import Destination
from lamina.images.operation import Options, operation
from lamina.images.progress import Progress, Timings
from lamina.images.reference import parse
from lamina.images.registry.cancel import Cancel
from lamina.images.registry.client import Registry
from lamina.images.store import ImageStore
from lamina.images.tree import PlatformImage


@dataclass(frozen=True, slots=True)
class Pulled:
    """The outcome: the record, what was unpacked (or fetched) of it, and where the time went."""

    image: Image
    unpacked: tuple[PlatformImage, ...]
    timings: Timings


def pull(
    ref: str,
    *,
    store: ImageStore,
    registry: Registry,
    destination: Destination | None,
    options: Options | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    sync: Callable[[], None] | None = None,
    collect: Callable[[], object] | None = None,
) -> Pulled:
    """Bring the image up to date with its registry, and unpack it.

    Args:
        ref: reference as users write it; the record's name is its full form.
        store: where the content goes.
        registry: where it comes from.
        destination: where to unpack; None to fetch only.
        options: how.
        progress: told what happens.
        cancel: stops it from another thread.
        sync: makes content and snapshots durable; called before the image is recorded.
        collect: frees what nothing names; called when an older image, or the remains of a dead
            pull, may have become such.

    Raises:
        NotFound: no such image, or none for the platform.
        LaminaError: as the registry, the content store and the unpacker raise. Nothing is left
            mounted or half made then, and what was downloaded is kept for the next try.
    """
    reference = parse(ref)
    name = str(reference)
    if collect is not None and store.leases.abandoned():
        collect()
    with operation(
        store,
        name,
        source=(registry, reference),
        options=options,
        progress=progress,
        cancel=cancel,
    ) as running:
        target, data = registry.resolve(reference, cancel=running.cancel)
        running.fetcher.keep(target, data)
        unpacked = running.bring(target, destination)
        if sync is not None:
            sync()
        [image], garbage = running.record({name: target})
    if collect is not None and garbage:
        collect()
    return Pulled(image, unpacked, running.clock.timings())


def unpack(
    image: Image,
    *,
    store: ImageStore,
    destination: Destination,
    registry: Registry | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    lease: str = "",
) -> PlatformImage:
    """Make sure that an image's layers are in a snapshotter, from local content where it is there.

    Args:
        image: a record of the store.
        store: where its content is.
        destination: where to unpack.
        registry: where to get content that is gone; None raises NotFound instead.
        options: how; all platforms named there are unpacked.
        progress: told what happens.
        cancel: stops it from another thread.
        lease: id of the caller's lease, which is to hold the snapshots; "" takes one for the time
            of the call.

    Returns:
        The image for the first platform of the options.

    Raises:
        NotFound: the image has nothing for the platform, or content is missing.
        LaminaError: as `pull`.
    """
    source = (registry, parse(image.name)) if registry is not None else None
    with operation(
        store,
        image.name,
        source=source,
        options=options,
        progress=progress,
        cancel=cancel,
        lease=lease,
    ) as running:
        return running.bring(image.target, destination)[0]
