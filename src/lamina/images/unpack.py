"""Unpacking: the layers of an image become a chain of Committed snapshots named by chain id.

For each layer an *extraction snapshot* is prepared, the layer applied to it while its blob may
still be downloading, and the result committed under the chain id. The labels given to Prepare ask
a remote snapshotter whether it has the layer already: AlreadyExists, with the chain id there, is
its "yes", and then nothing is fetched. Snapshots whose mounts are read-only are filled already and
only committed.

Where the driver can rebase, extraction snapshots are prepared without parent and all layers unpack
at the same time; commits still follow the layers' order, each naming the one below as its parent.
A layer that uses directories without describing them takes them from those below, and so it is
extracted again, on top of them, when they are there.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.core.digest import Digest
from lamina.core.labels import GC_REF_SNAPSHOT, UNCOMPRESSED
from lamina.core.mount import Mount
from lamina.errors import Cancelled, DigestMismatch, InvalidArgument, LaminaError
from lamina.formats.overlaybd.annotations import BLOB_DIGEST
from lamina.formats.rafs.annotations import BLOB
from lamina.images.download import Download, event
from lamina.images.extraction import Destination, Extractor, Layer, layers_of
from lamina.images.fetch import Fetcher
from lamina.images.origin import ImageOrigin, origin_labels
from lamina.images.progress import Progress, Stage, StageClock
from lamina.images.registry.cancel import Cancel
from lamina.images.store import ImageStore
from lamina.images.tree import PlatformImage
from lamina.layer.limits import Applied, LayerLimits
from lamina.layer.target import LayerTarget, layer_target
from lamina.mount import temp_mount
from lamina.mount.watch import has_own_filesystem, watched_writes

if TYPE_CHECKING:
    from lamina.layer.process import LayerJob, LayerWorkers

LAYERS_AT_ONCE = 8
"""Layers that are between Prepare and Commit at a time, where the driver can rebase."""


class Unpacker(Extractor):
    """Unpacks images to one snapshotter, for one operation.

    Args:
        lease: id of the lease that holds the snapshots until an image names them.
        fetcher: where the blobs come from.
        workers: processes that apply layers.
        origin: where the images come from; None for no registry.
    """

    def __init__(
        self,
        store: ImageStore,
        destination: Destination,
        lease: str,
        *,
        fetcher: Fetcher,
        workers: LayerWorkers,
        limits: LayerLimits,
        progress: Progress,
        clock: StageClock,
        cancel: Cancel,
        origin: ImageOrigin | None = None,
    ) -> None:
        super().__init__(store, destination, lease, progress=progress, cancel=cancel)
        self._origin = origin if destination.remote else None
        self._rebase = destination.rebase
        self._fetcher = fetcher
        self._workers = workers
        self._limits = limits
        self._clock = clock

    def unpack(self, image: PlatformImage) -> None:
        """Make the chain of snapshots; what of it is there already is used.

        Raises:
            DigestMismatch: a layer is not what its digest or diff id says.
            InvalidArgument: a layer is a Nydus blob, or of an overlaybd device, and the snapshotter
                does not serve it.
            FormatError, ResourceExhausted: a layer is damaged, or asks for too much.
            Cancelled: told so. Whatever the error, no extraction snapshot is left.
        """
        if not image.chain:
            return
        # Before any of them is looked up, so that no collection takes away what is found.
        self._hold(image.chain)
        layers = self._layers(image)
        missing = layers[self._present(layers) :]
        if not self._destination.remote:
            for layer in missing:
                _require_files(layer)
                _refuse_device(layer)
        for layer in layers[: len(layers) - len(missing)]:
            self._progress.update(event(layer.descriptor, Stage.EXISTS, layer.descriptor.size))
        if self._rebase and len(missing) > 1:
            self._fetcher.require_space([layer.descriptor for layer in missing])
            self._unpack_at_once(missing)
        else:
            self._unpack_in_turn(missing)
        label = {f"{GC_REF_SNAPSHOT}.{self._name}": image.chain[-1]}
        self._store.content.label(image.manifest.config.digest, label)

    def _layers(self, image: PlatformImage) -> list[Layer]:
        layers = layers_of(image)
        if self._origin is not None:
            blobs = [layer.descriptor for layer in layers]
            origins = origin_labels(self._origin, image.descriptor, blobs)
            for layer, origin in zip(layers, origins, strict=True):
                layer.origin = origin
        return layers

    def _unpack_in_turn(self, layers: Sequence[Layer]) -> None:
        """Extract each layer on top of the one below; downloads run ahead of it.

        But a layer that the snapshotter may yet claim is downloaded when it has not.
        """
        for number, layer in enumerate(layers):
            with layer.held:
                self._lock(layer)
                if self._destination.has(layer.chain_id):
                    self._progress.update(event(layer.descriptor, Stage.EXISTS))
                    continue
                mounts = self._prepare(layer, layer.below or "")
                if mounts and not mounts[-1].read_only and layer.download is None:
                    _require_files(layer)
                    self._begin_downloads(layer, layers[number + 1 :])
                self._fill(layer, mounts, rebase=False)
                self._commit(layer, "")
        for layer in layers:
            if layer.download is not None:
                layer.download.wait()

    def _begin_downloads(self, layer: Layer, above: Sequence[Layer]) -> None:
        rest = [each for each in above if not (each.download or each.may_be_claimed)]
        self._fetcher.require_space([each.descriptor for each in (layer, *rest)])
        for each, download in zip((layer, *rest), self._downloads([layer, *rest]), strict=True):
            each.download = download

    def _unpack_at_once(self, layers: Sequence[Layer]) -> None:
        """Extract all layers side by side and commit them in order."""
        first_error: list[BaseException] = []
        guard = threading.Lock()

        def failed(future: Future[None]) -> None:
            error = future.exception()
            with guard:
                if error is not None and not first_error:
                    first_error.append(error)
                    self._cancel.set()

        with ExitStack() as stack:
            for layer in layers:
                stack.push(layer.held)
            pool = stack.enter_context(ThreadPoolExecutor(LAYERS_AT_ONCE, "lamina-unpack"))
            try:
                futures = [pool.submit(self._extract_alone, layer) for layer in layers]
                for future in futures:
                    future.add_done_callback(failed)
                for layer, future in zip(layers, futures, strict=True):
                    future.result()
                    if layer.implied and layer.below is not None:
                        self._extract_again(layer, layer.below)
                        self._commit(layer, "")
                    else:
                        self._commit(layer, layer.below or "")
            except BaseException as error:
                self._cancel.set()
                if isinstance(error, Cancelled) and first_error:
                    raise first_error[0] from None
                raise

    def _extract_alone(self, layer: Layer) -> None:
        self._lock(layer)
        if self._destination.has(layer.chain_id):
            return
        mounts = self._prepare(layer, "")
        if mounts and not mounts[-1].read_only:
            [layer.download] = self._downloads([layer])
        self._fill(layer, mounts, rebase=layer.below is not None)

    def _extract_again(self, layer: Layer, below: Digest) -> None:
        self._discard(layer)
        layer.key = ""
        self._fill(layer, self._prepare(layer, below), rebase=False)

    def _downloads(self, layers: Sequence[Layer]) -> list[Download]:
        return self._fetcher.layers([layer.descriptor for layer in layers])

    def _fill(self, layer: Layer, mounts: list[Mount], *, rebase: bool) -> None:
        if layer.download is None or not mounts or mounts[-1].read_only:
            return
        with ExitStack() as stack:
            target = layer_target(mounts, rebase=rebase)
            if target is not None:
                target = replace(target, image=self._destination.layer_image(layer.key))
            else:
                path = stack.enter_context(temp_mount(mounts, dir=self._store.mounts))
                if has_own_filesystem(mounts):
                    stack.enter_context(watched_writes(mounts, path))
                target = LayerTarget(path)
            applied = self._apply(layer, layer.download, target)
        layer.implied = rebase and applied.implied
        self._store.content.label(layer.descriptor.digest, {UNCOMPRESSED: applied.diff_id})
        if layer.implied:
            return  # it is extracted once more
        self._progress.update(event(layer.descriptor, Stage.UNPACKED, layer.descriptor.size))

    def _apply(self, layer: Layer, download: Download, target: LayerTarget) -> Applied:
        """Apply the layer while it arrives; a failed download is what is reported, if it failed."""

        def start(blob: Path, available: int) -> LayerJob:
            return self._workers.start(
                blob,
                layer.descriptor.media_type,
                target,
                size=layer.descriptor.size,
                available=available,
                diff_id=layer.diff_id,
                limits=self._limits,
            )

        with (
            self._cancel.interrupting(download.give_up),
            download.feeding(start) as job,
            self._cancel.interrupting(job.cancel),
        ):
            self._progress.update(event(layer.descriptor, Stage.UNPACKING))
            try:
                with self._clock.running("unpack"):
                    applied = job.result()
            except BaseException as error:
                job.cancel()
                download.check()
                raise _of_layer(error, layer) from error
            download.wait()
        return applied


def _require_files(layer: Layer) -> None:
    """Refuse a Nydus blob: the names of what it has are in another layer."""
    if BLOB in layer.descriptor.annotations:
        hint = "it is a Nydus blob, without names: use --snapshotter nydus, or another image"
        raise InvalidArgument("unpack layer", layer.descriptor.digest, hint=hint)


def _refuse_device(layer: Layer) -> None:
    """Refuse a layer of an overlaybd device, of which extraction would make one file."""
    if BLOB_DIGEST in layer.descriptor.annotations:
        hint = "it is of a block device: use --snapshotter overlaybd, or another image"
        raise InvalidArgument("unpack layer", layer.descriptor.digest, hint=hint)


def _of_layer(error: BaseException, layer: Layer) -> BaseException:
    """Return the error with the name of the layer, which its worker does not know."""
    digest = layer.descriptor.digest
    if isinstance(error, DigestMismatch):
        what = "check diff id of layer"
        return DigestMismatch(what, digest, expected=error.expected, got=error.got)
    if isinstance(error, LaminaError):
        error.what = f"unpack layer {digest}: {error.what}"
    return error
