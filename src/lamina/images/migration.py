"""Copying unpacked images from one snapshotter to another: no registry, and no layer's blob.

Layer by layer, base first, what a layer of the source changes goes through a pipe into an
extraction snapshot of the target, as when unpacking. It is committed under the same chain id, but
only after both trees were compared entry by entry. Layers that the target has are used as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from lamina.core.digest import Digest
from lamina.core.labels import GC_REF_SNAPSHOT
from lamina.core.mount import Mount
from lamina.errors import DataLoss, FailedPrecondition, LaminaError
from lamina.images.catalogue import Image
from lamina.images.download import event
from lamina.images.extraction import Destination, Extractor, Layer, extraction_key, layers_of
from lamina.images.operation import operation
from lamina.images.progress import Event, Progress, Silent, Stage
from lamina.images.registry.cancel import Cancel
from lamina.images.store import ImageStore
from lamina.images.tree import PlatformImage, images, read_image
from lamina.layer.compare import differences
from lamina.layer.copying import Copied, LayerSource, NotALayer, copy_layer, overlay_source
from lamina.layer.limits import LayerLimits
from lamina.layer.process import LayerWorkers
from lamina.layer.target import LayerTarget, layer_target
from lamina.meta.leases import Resource
from lamina.mount import temp_mount
from lamina.mount.watch import has_own_filesystem, watched_writes

_SHOWN = 3
"""Differences that an error names."""


@dataclass(frozen=True, slots=True)
class MigratedLayer:
    """One layer of the target.

    Attributes:
        copied: made now; otherwise the target had it.
        size: bytes of the stream that it was copied as.
        identical: that stream, made anew from the source's tree, has the layer's own diff id.
    """

    chain_id: Digest
    copied: bool = False
    size: int = 0
    identical: bool = False


@dataclass(frozen=True, slots=True)
class MigratedImage:
    """One image for one platform, with its layers, base first."""

    manifest: Digest
    layers: tuple[MigratedLayer, ...]


@dataclass(frozen=True, slots=True)
class Migrated:
    """The outcome for one image.

    Attributes:
        image: its record.
        copies: one for each platform that was unpacked.
        left: layers that the source still has although it was to be rid of them; a container,
            another image or a lease needs them.
    """

    image: Image
    copies: tuple[MigratedImage, ...]
    left: tuple[Digest, ...] = ()


def migrate(
    image: Image,
    *,
    store: ImageStore,
    source: Destination,
    target: Destination,
    limits: LayerLimits | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    collect: Callable[[], object] | None = None,
) -> tuple[MigratedImage, ...]:
    """Copy to `target` what of an image is unpacked in `source`, for every platform.

    Args:
        image: a record of the store.
        store: where its manifests and configurations are; layers need not be there.
        source: where to copy from.
        target: where to copy to.
        limits: bounds of each layer.
        progress: told what happens.
        cancel: stops it from another thread.
        collect: frees what a killed run has left half made.

    Raises:
        FailedPrecondition: the image is not unpacked in `source`, or not wholly.
        DataLoss: a copy is not what it was made from; nothing of it is kept.
        ResourceExhausted: the target has no room.
        LaminaError: as snapshotters raise. What was committed before stays, so that the next run
            goes on with the layer after it.
    """
    if collect is not None and store.leases.abandoned():
        collect()
    progress, cancel = progress or Silent(), cancel or Cancel()
    with operation(store, image.name, progress=progress, cancel=cancel) as running:
        found = list(_unpacked(image, store, source))
        if not found:
            raise _not_unpacked(image, store, source)
        # The workers keep this process's token alive, as when unpacking.
        with LayerWorkers(1, held=[store.owners.fileno()]) as workers:
            migration = Migration(
                store,
                source,
                target,
                running.lease,
                workers=workers,
                limits=limits or LayerLimits(),
                progress=progress,
                cancel=cancel,
            )
            return tuple(migration.run(each) for each in found)


def forget(image: Image, *, store: ImageStore, snapshotter: str) -> None:
    """Have an image hold its layers in a snapshotter no more; a collection frees them then."""
    for each in _local_images(image, store):
        store.content.label(each.manifest.config.digest, {f"{GC_REF_SNAPSHOT}.{snapshotter}": ""})


def left_in(source: Destination, copies: Iterable[MigratedImage]) -> tuple[Digest, ...]:
    """Return the layers of the copies that the source has, each once."""
    chain_ids = dict.fromkeys(layer.chain_id for copy in copies for layer in copy.layers)
    return tuple(filter(source.has, chain_ids))


class Migration(Extractor):
    """Copies images from one snapshotter to another, for one operation.

    Args:
        store: has the leases and the locks.
        source: where to copy from.
        target: where to copy to.
        lease: id of the lease that holds both until the image names the copy.
        workers: processes that apply layers.
        limits: bounds of each layer.
    """

    def __init__(
        self,
        store: ImageStore,
        source: Destination,
        target: Destination,
        lease: str,
        *,
        workers: LayerWorkers,
        limits: LayerLimits,
        progress: Progress,
        cancel: Cancel,
    ) -> None:
        super().__init__(store, target, lease, progress=progress, cancel=cancel)
        self._source = source
        self._workers = workers
        self._limits = limits

    def run(self, image: PlatformImage) -> MigratedImage:
        """Copy what the target lacks; the image holds the copy from then on."""
        if not image.chain:
            return MigratedImage(image.descriptor.digest, ())
        # Before any of them is looked up, so that no collection takes away what is found.
        self._hold(image.chain)
        self._hold_source(image.chain)
        layers = layers_of(image)
        present = self._present(layers)
        missing = layers[present:]
        done = [self._exists(layer) for layer in layers[:present]]
        if missing:
            self._require_source(image, missing)
        done += [self._copy(layer, is_top=layer is layers[-1]) for layer in missing]
        label = {f"{GC_REF_SNAPSHOT}.{self._name}": image.chain[-1]}
        self._store.content.label(image.manifest.config.digest, label)
        return MigratedImage(image.descriptor.digest, tuple(done))

    def _exists(self, layer: Layer) -> MigratedLayer:
        self._progress.update(event(layer.descriptor, Stage.EXISTS))
        return MigratedLayer(layer.chain_id)

    def _require_source(self, image: PlatformImage, layers: Sequence[Layer]) -> None:
        needed = image.chain[max(layers[0].position - 1, 0) :]
        for chain_id in needed:
            if not self._source.has(chain_id):
                hint = "a layer of it is gone: pull the image again"
                raise FailedPrecondition(f"copy from {self._source.name}", chain_id, hint=hint)

    def _copy(self, layer: Layer, *, is_top: bool) -> MigratedLayer:
        """Copy one layer on top of the one below."""
        with layer.held:
            self._lock(layer)
            if self._destination.has(layer.chain_id):
                return self._exists(layer)
            try:
                copied = self._made(layer, is_top=is_top)
            except LaminaError as error:
                error.what = f"copy layer {layer.chain_id} to {self._name}: {error.what}"
                raise
            if copied is None:
                return self._exists(layer)
            self._commit(layer, "")
        applied = copied.applied
        return MigratedLayer(layer.chain_id, True, applied.size, applied.diff_id == layer.diff_id)

    def _made(self, layer: Layer, *, is_top: bool) -> Copied | None:
        """Make and fill the extraction snapshot; None if the target turns out to have the layer."""
        mounts = self._prepare(layer, layer.below or "")
        if not mounts:
            return None
        try:
            return self._fill(layer, mounts, is_top=is_top)
        except NotALayer:
            self._discard(layer)
            layer.key = ""
        mounts = self._prepare(layer, layer.below or "")
        return self._fill(layer, mounts, is_top=is_top, walk=True) if mounts else None

    def _fill(
        self, layer: Layer, mounts: list[Mount], *, is_top: bool, walk: bool = False
    ) -> Copied:
        """Copy the layer and compare.

        Raises:
            NotALayer: the source's directory of the layer says too little; `walk` the trees.
        """
        with ExitStack() as stack:
            view = self._view(stack, layer.chain_id)
            tree = stack.enter_context(temp_mount(view, dir=self._store.mounts, read_only=True))
            source = None if walk else overlay_source(view, layer.position + 1)
            if source is None:
                below = self._mounted(stack, layer.below) if layer.below else None
                source = LayerSource(tree, below)
            copied = self._write(layer, source, mounts)
            self._progress.update(_news(layer, Stage.VERIFYING))
            # Every byte that the image shows is read at the top, and here those that are new.
            is_read = copied.paths.__contains__ if not is_top else _everything
            self._compare(tree, mounts, copied.granularity_ns, is_read)
        return copied

    def _write(self, layer: Layer, source: LayerSource, mounts: list[Mount]) -> Copied:
        size = self._source.snapshotter.usage(layer.chain_id).size

        def written(done: int) -> None:
            self._progress.update(_news(layer, Stage.COPYING, min(done, size), size))

        with ExitStack() as stack:
            target = layer_target(mounts, rebase=False)
            if target is None:
                path = stack.enter_context(temp_mount(mounts, dir=self._store.mounts))
                if has_own_filesystem(mounts):
                    stack.enter_context(watched_writes(mounts, path))
                target = LayerTarget(path)
            written(0)
            return copy_layer(source, target, self._workers, self._limits, written=written)

    def _compare(
        self,
        tree: Path,
        mounts: list[Mount],
        granularity_ns: int,
        is_read: Callable[[bytes], bool],
    ) -> None:
        """Compare source and target before anybody sees the target.

        Raises:
            DataLoss: they differ.
        """
        with temp_mount(mounts, dir=self._store.mounts, read_only=True) as copy:
            found = differences(tree, copy, granularity_ns=granularity_ns, is_read=is_read)
            with closing(found):  # it holds both trees open
                first = [str(each) for each in itertools.islice(found, _SHOWN + 1)]
        if first:
            more = "; and more" if len(first) > _SHOWN else ""
            hint = f"{'; '.join(first[:_SHOWN])}{more}. Nothing of this layer was kept"
            raise DataLoss(f"compare it with {self._source.name}", hint=hint)

    def _mounted(self, stack: ExitStack, chain_id: Digest) -> Path:
        view = self._view(stack, chain_id)
        return stack.enter_context(temp_mount(view, dir=self._store.mounts, read_only=True))

    def _view(self, stack: ExitStack, chain_id: Digest) -> list[Mount]:
        """Make a View of a layer of the source; its key lets a collection take it if we die."""
        key = extraction_key(chain_id)
        self._hold_source([key])
        mounts = self._source.snapshotter.view(key, chain_id)
        stack.callback(self._source.snapshotter.remove, key)
        return mounts

    def _hold_source(self, keys: Sequence[str]) -> None:
        resources = [Resource.snapshot(self._source.name, key) for key in keys]
        self._store.leases.add(self._lease, resources)


def _unpacked(image: Image, store: ImageStore, source: Destination) -> Iterator[PlatformImage]:
    for each in _local_images(image, store):
        if each.chain_id is None or source.has(each.chain_id):
            yield each


def _local_images(image: Image, store: ImageStore) -> Iterator[PlatformImage]:
    """Yield the image for each platform whose manifest and configuration are here."""
    for descriptor in images(image.target, store.read):
        try:
            yield read_image(descriptor, store.read)
        except LaminaError:
            continue  # another platform's, or no image


def _not_unpacked(image: Image, store: ImageStore, source: Destination) -> LaminaError:
    prefix = f"{GC_REF_SNAPSHOT}."
    found: set[str] = set()
    for each in _local_images(image, store):
        labels = store.content.info(each.manifest.config.digest).labels
        found |= {key.removeprefix(prefix).partition("/")[0] for key in labels if prefix in key}
    hint = f"it is unpacked in: {', '.join(sorted(found))}" if found else "pull it first"
    return FailedPrecondition(f"image is not unpacked in {source.name}:", image.name, hint=hint)


def _everything(path: bytes) -> bool:
    return True


def _news(layer: Layer, stage: Stage, offset: int = 0, total: int = 0) -> Event:
    digest = layer.descriptor.digest
    return Event(f"layer-{digest}", digest, stage, offset, total)
